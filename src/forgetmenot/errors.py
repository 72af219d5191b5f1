"""The one exception whose message is meant for the user."""


class UserError(Exception):
    """Bad input: the message names the file or key, what was found and what is allowed."""
