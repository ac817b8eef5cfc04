"""The tokenizer that a GGUF file describes, read from the file alone: what a server makes of a text.

The facts are llama.cpp's (``src/llama-vocab.cpp``): how text is split for each ``tokenizer.ggml.pre``, that
vocabularies of bytes are merged in the order of their merges and those of SentencePiece in the order of their scores,
and that control tokens are found before anything is split.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gguf import GGUFReader, TokenType
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from backprop.core.errors import GGUFError

_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = r"[^\r\n\p{L}\p{N}]?%s*%s+%s|[^\r\n\p{L}\p{N}]?%s+%s*%s"
_CASED_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

SPLITS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3,),
    "smaug-bpe": (_LLAMA3,),
    "qwen2": (_SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL,),
    "qwen35": (
        _SHORT + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "tekken": (_CASED % (_UPPER, _LOWER, "", _UPPER, _LOWER, "") + r"|\p{N}" + _CASED_TAIL,),
    "gpt-4o": (_CASED % (_UPPER, _LOWER, _SHORT + "?", _UPPER, _LOWER, _SHORT + "?") + r"|\p{N}{1,3}" + _CASED_TAIL,),
}
"""How a text is split before bytes are merged, by ``tokenizer.ggml.pre``; each pattern splits what others left."""
_WHOLE_FIRST = ("llama-bpe", "tekken")
"""Where a piece that is a token is taken as it is, whatever its merges would make of it."""
_BEFORE_SPLITTING = (TokenType.CONTROL, TokenType.USER_DEFINED)


def value(file: GGUFReader, key: str, default: Any = None) -> Any:
    """What the file says under ``key``.

    Raises:
        GGUFError: text that is no text.
    """
    field = file.fields.get(key)
    try:
        return default if field is None else field.contents()
    except ValueError as error:
        raise GGUFError(f"{key} cannot be read: {error}") from error


def read_tokenizer(file: GGUFReader) -> Tokenizer:
    """The tokenizer that the file describes. It adds no begin token: ``tokenizer.ggml.add_bos_token`` is the server's.

    Raises:
        GGUFError: the vocabulary is of no kind that is known here, or incomplete.
    """
    kind, pre = value(file, "tokenizer.ggml.model"), value(file, "tokenizer.ggml.pre", "default")
    tokens: list[str] = value(file, "tokenizer.ggml.tokens", [])
    types: list[int] = value(file, "tokenizer.ggml.token_type", [])
    if len(types) != len(tokens):
        raise GGUFError(f"the file names {len(tokens)} tokens and the types of {len(types)}")
    if kind == "gpt2":
        if pre not in SPLITS:
            raise GGUFError(f"how text is split for tokenizer.ggml.pre {pre!r} is not known")
        merges = [merge.partition(" ")[::2] for merge in value(file, "tokenizer.ggml.merges", [])]
        made = _bpe(tokens, merges, ignore_merges=pre in _WHOLE_FIRST)
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[pre]]
        bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytewise])
    elif kind == "llama":
        scores = value(file, "tokenizer.ggml.scores", [])
        if len(scores) != len(tokens):
            raise GGUFError(f"the file names {len(tokens)} tokens and the scores of {len(scores)}")
        unknown = tokens[value(file, "tokenizer.ggml.unknown_token_id", 0)]
        merges = _merges(tokens, scores, types)
        made = _bpe(tokens, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
        spaces: list[Any] = [normalizers.Replace(" ", "▁")]
        if value(file, "tokenizer.ggml.add_space_prefix", True):
            spaces.insert(0, normalizers.Prepend("▁"))
        made.normalizer = normalizers.Sequence(spaces)
    else:
        raise GGUFError(f"vocabularies of the kind {kind!r} (tokenizer.ggml.model) are not known")
    name = str(value(file, "general.name", "")).lower()
    trims = kind == "llama" and ("phi-3" in name or "phi3" in name)
    made.add_tokens(list(_found_first(tokens, types, trims)))
    return made


def _bpe(tokens: list[str], merges: list[tuple[str, str]], **options: Any) -> Tokenizer:
    try:
        return Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, merges, **options))
    except Exception as error:  # the Rust library raises nothing more exact
        raise GGUFError(f"tokens and merges do not fit each other: {error}") from error


def _found_first(tokens: list[str], types: list[int], trims: bool) -> Iterator[AddedToken]:
    """Tokens that are found before a text is split. ``trims``: they swallow the white space behind them (Phi-3)."""
    keeps_space = ("<unk>", "<s>", "<|endoftext|>")
    for token, type_ in zip(tokens, types, strict=True):
        if type_ in _BEFORE_SPLITTING:
            rstrip = trims and type_ == TokenType.CONTROL and token not in keeps_space
            yield AddedToken(token, special=type_ == TokenType.CONTROL, normalized=False, rstrip=rstrip)


def _merges(tokens: list[str], scores: list[float], types: list[int]) -> list[tuple[str, str]]:
    """The merges that build each token from two others, the best score first."""
    known = {token for token, type_ in zip(tokens, types, strict=True) if type_ in (1, TokenType.USER_DEFINED)}
    found = [
        (score, len(token[:cut]), token[:cut], token[cut:])
        for token, score in zip(tokens, scores, strict=True)
        if token in known
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]
    found.sort(key=lambda merge: (-merge[0], -merge[1]))
    return [(left, right) for _, _, left, right in found]


_PIECES = (
    *("Hello world", "don't I'LL we've", "CamelCase snake_case kebab-case", "a", "I", ".", "…", "—", "'", '"'),
    *("0", "7", "42", "123", "1234567", "3.14159", "1,000,000", "2026-11-26T20:42:52", "0x1F", "١٢٣", "½ ² Ⅷ"),
    *("\n", "\n\n", "\r\n", "\t", " ", "  ", "   \n  ", "\u00a0", "\u3000", "\u200b", "a\n\n\nb", "a  b   c    d"),
    *("naïve café", "e\u0301 a\u0308", "Straße ÇĞİŞ", "привет, мир", "Ελληνικά", "שלום עולם", "مرحبا بالعالم"),
    *("नमस्ते", "สวัสดี", "你好，世界", "日本語のテキスト", "안녕하세요", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "ﬁ ﬂ", "\ufeffx"),
    *(
        "🙂",
        "👩‍👩‍👧‍👦",
        "🏳️‍🌈 🇩🇪",
        "❤️",
        "def f(x):\n    return x**2\n",
        "<div class='a'>&nbsp;</div>",
        '{"k": [1, null]}',
    ),
    *("SELECT * FROM t;", "C:\\path\\file", "https://example.org/a?b=c&d=%20#e", "$\\frac{1}{2}$", "#!/bin/sh"),
    "/* */ //",
    *("<|im_start|>", "<|im_end|", "</s>", "<s>", "[INST]", "<0x0A>", "<|endoftext|> <|eot_id|>", "<unk>", "–", "Ġ"),
    *("a" * 300, "ab " * 100, "=" * 80, "-" * 17, "…" * 9, "哈" * 40, "😀" * 20, "\n" * 12, " " * 50),
)
_FRAMES = ("{0}", " {0}", "x{0}y 12 {0}")


AWKWARD_TEXTS = list(dict.fromkeys(frame.format(piece) for frame in _FRAMES for piece in _PIECES))[:200]
"""Texts on which tokenizers that are nearly the same part: white space, digits, scripts, marks, look-alikes."""
