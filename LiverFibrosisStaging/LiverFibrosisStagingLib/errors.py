"""The two ways in which staging ends without a result."""


class StagingError(Exception):
    """A refusal: one sentence that names the file or node, what was found and what is needed."""


class Cancelled(Exception):
    """The user cancelled: nothing was written and nothing is left behind."""
