"""What people do with an encoder: embed, classify, tag, answer, fill in."""
