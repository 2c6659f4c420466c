"""What a result looks like on paper: pictures, tables, colours. Knows no scene."""
