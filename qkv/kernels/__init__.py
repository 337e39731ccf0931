"""Numbers packed in blocks: their formats, what they stand for, and native products with them."""
