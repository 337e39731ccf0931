"""What qkv raises. Every message names the thing (file, field, tensor, limit) and the way out."""


class QkvError(Exception):
    """The root: the command line prints its message without a traceback and exits with 1."""


class NotFound(QkvError):
    """A model, file or revision that is not there (the message says where it was looked for)."""


class CorruptFile(QkvError):
    """A file that breaks its own format. The message names the path and what is wrong, before anything is allocated."""


class UnsafeFile(QkvError):
    """A file or path that could run code or reach outside the model's folder. Never opened."""


class ConfigError(QkvError, ValueError):
    """A config or spec field with a wrong or unknown value. The message names the field."""


class WeightError(QkvError):
    """Weights that don't fit the model: missing, unexpected, misshapen, tied in one place and not in the other."""


class TokenizerError(QkvError, ValueError):
    """A tokenizer that is broken, unsafe or doesn't fit its model, or a text that it can't take."""


class TemplateError(QkvError, ValueError):
    """A chat template that fails, reaches for something forbidden, or exceeds its time or size."""


class InputError(QkvError, ValueError):
    """An argument that the model can't take: token ids out of range, an empty prompt, a text beyond the positions."""
