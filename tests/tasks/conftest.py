"""The tokenizers that the tests of inputs have."""

from tests.inputs.conftest import tokenizers as tokenizers
