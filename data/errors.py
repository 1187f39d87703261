"""The one error that users' data can raise."""


class DataError(ValueError):
    """Something in a user's data is wrong; the message says where, what was expected and what to do."""
