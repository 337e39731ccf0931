"""The regular expressions that real tokenizers cut text with. Each takes time linear in the text (tests time them).

Sources: the `tokenizer.json` of the models named, and the table of names in llama.cpp's `src/llama-vocab.cpp`.
"""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
DIGITS = r"\p{N}"  # each by itself, cut out before GPT2 sees the rest
ANY_CHARACTER = r"[\s\S]"  # ours, for character-level tokenizers

_OTHERS = (
    r"\p{N}{1,3}",  # DeepSeek-V3, its digits, its CJK and the rest
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",  # BLOOM
    r"[0-9][0-9][0-9]",  # Falcon
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",  # CLIP
    r"\s+",  # CLIP's normalizer
    r" {2,}",  # SentencePiece conversions: T5, ALBERT, XLM-R …
)
KNOWN = frozenset({GPT2, LLAMA3, QWEN2, QWEN35, TEKKEN, GPT4O, CL100K, DIGITS, ANY_CHARACTER, *_OTHERS})

# tokenizer.ggml.pre -> what text is cut with, one after the other. "default" is what writers put where the name is
# unknown to them; GPT-2's regex is what transformers takes it for (llama.cpp has one of its own).
_PRE = (
    (
        "default gpt-2 phi-2 mpt olmo jais trillion granite-docling gigachat a.x-4.0 mellum modern-bert exaone4",
        (GPT2,),
    ),
    ("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", (DIGITS, GPT2)),
    ("llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", (LLAMA3,)),
    ("dbrx smaug-bpe glm4 chatglm-bpe", (LLAMA3,)),
    ("qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2", (QWEN2,)),
    ("qwen35", (QWEN35,)),
    ("tekken", (TEKKEN,)),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", (GPT4O,)),
)
GGUF_PRE: dict[str, tuple[str, ...]] = {name: regexes for names, regexes in _PRE for name in names.split()}
# Words that are tokens are taken whole, and BOS is added where the file says nothing (llama.cpp, same table).
GGUF_WHOLE_WORDS = frozenset(
    {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "tekken"}
)
