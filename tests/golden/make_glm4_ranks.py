"""Makes glm4.model, a rank file of GLM-4's form with 800 ranks, trained on the texts below.

Run ``python tests/golden/make_glm4_ranks.py``.  The file is committed, since the ids in
glm4-tokenizer.json are those that the original code gave with it.  The 256 bytes come first, then
merges, best first.
"""

import base64
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import bytes_to_unicode

HERE = Path(__file__).parent
RANKS = 800
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    "类型#上衣*材质#牛仔布*颜色#白色*风格#简约*图案#刺绣*衣样式#外套*衣款式#破洞",
    "这件上衣采用牛仔布，白色的衣身简约而不简单，搭配刺绣图案，显得清新又有个性。",
    "类型#裙*颜色#黑色*图案#印花*裙长#连衣裙*裙下摆#花边*裙腰型#高腰",
    "黑色的裙子，印花图案，显得清新。高腰的设计，拉长腿部线条，尽显女性的优雅。",
    "类型#裤*材质#羊毛*风格#英伦*裤型#喇叭裤*裤腰型#松紧腰*颜色#灰色*材质#水洗",
    "这款英伦风十足的喇叭裤选用优质的羊毛面料，保暖又轻盈，松紧腰设计舒适不勒肚。",
    "你好，有什么可以帮你？请问今天北京的天气怎么样？今天晴，最高气温二十五度。",
    "The quick brown fox jumps over the lazy dog, 0123456789 times (twice)! It's what they'd do.",
    "The weather in Beijing is sunny today, and the temperature is 25 degrees.",
    '{"name": "get_weather", "description": "Weather", "parameters": {"type": "object"}}',
    '{\n    "city": "北京",\n    "unit": "celsius"\n}\n',
    "def f(x):\n    return x + 1\n\n\nfor i in range(10):\n    print(f(i))\n",
    "Привет, как дела? Καλημέρα. 안녕하세요. こんにちは。 😀👍🏽",
    "  \n\n   \t\t    \r\n        \n",
]


def main() -> None:
    """Write the file beside this one."""
    shown = bytes_to_unicode()
    bytes_of = {character: byte for byte, character in shown.items()}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=4 * RANKS, initial_alphabet=list(shown.values()), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    vocabulary = tokenizer.get_vocab()
    merged = sorted((token for token in vocabulary if len(token) > 1), key=vocabulary.__getitem__)
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [bytes(bytes_of[c] for c in token) for token in merged]
    lines = [
        base64.b64encode(token) + f" {rank}\n".encode()
        for rank, token in enumerate(dict.fromkeys(tokens))
    ]
    (HERE / "glm4.model").write_bytes(b"".join(lines[:RANKS]))


if __name__ == "__main__":
    main()
