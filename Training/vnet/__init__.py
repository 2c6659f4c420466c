"""The V-Net that segments liver and spleen."""
