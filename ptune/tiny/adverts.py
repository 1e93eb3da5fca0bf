"""The advertising grammar: draws attribute lists and writes listings and copy for them.

The lists have the form of the ADGEN data set (``类型#裙*材质#棉*颜色#白色``); the texts are made
from the wordings in `phrases`, none of them is taken from ADGEN.
"""

import random
from collections.abc import Sequence

from ptune.tiny import phrases

Attributes = list[tuple[str, str]]

# Attribute keys in the order of a list: key -> (how often it is drawn, its wordings).
SHARED_KEYS: dict[str, tuple[float, phrases.Phrases]] = {
    "版型": (0.45, phrases.FITS),
    "材质": (0.60, phrases.MATERIALS),
    "颜色": (0.55, phrases.COLORS),
    "风格": (0.75, phrases.STYLE_CLOSINGS),
    "图案": (0.45, phrases.PATTERNS),
}
TYPE_KEYS: dict[str, dict[str, tuple[float, phrases.Phrases]]] = {
    "上衣": {
        "衣样式": (0.85, {}),
        "衣领型": (0.35, phrases.COLLARS),
        "衣长": (0.20, phrases.TOP_LENGTHS),
        "衣袖长": (0.30, phrases.SLEEVE_LENGTHS),
        "衣袖型": (0.25, phrases.SLEEVE_SHAPES),
        "衣门襟": (0.25, phrases.FASTENINGS),
        "衣款式": (0.40, phrases.DETAILS),
    },
    "裤": {
        "裤长": (0.50, phrases.TROUSER_LENGTHS),
        "裤型": (0.55, phrases.TROUSER_SHAPES),
        "裤腰型": (0.40, phrases.WAISTS),
        "裤口": (0.25, phrases.TROUSER_HEMS),
        "裤款式": (0.45, phrases.DETAILS),
    },
    "裙": {
        "裙型": (0.40, phrases.SKIRT_SHAPES),
        "裙下摆": (0.30, phrases.SKIRT_HEMS),
        "裙腰型": (0.25, phrases.WAISTS),
        "裙长": (0.75, phrases.SKIRT_LENGTHS),
        "裙袖长": (0.20, phrases.SLEEVE_LENGTHS),
        "裙袖型": (0.20, phrases.SLEEVE_SHAPES),
        "裙领型": (0.30, phrases.COLLARS),
        "裙衣门襟": (0.15, phrases.FASTENINGS),
        "裙款式": (0.35, phrases.DETAILS),
    },
}
# The cuts of tops, each with the materials it comes in.
TOP_MATERIALS: dict[str, tuple[str, ...]] = {
    "卫衣": ("棉", "针织"),
    "衬衫": ("棉", "雪纺", "真丝", "亚麻", "牛仔布"),
    "外套": ("牛仔布", "羊毛", "皮革", "棉", "羊绒"),
    "风衣": ("棉", "羊毛", "皮革"),
    "毛衣": ("针织", "羊毛", "羊绒"),
    "西装": ("羊毛", "亚麻", "丝绒"),
    "T恤": ("棉", "亚麻", "真丝"),
    "马甲": ("针织", "牛仔布", "皮革", "羊毛"),
}
TYPE_MATERIALS: dict[str, tuple[str, ...]] = {
    "上衣": ("棉", "雪纺", "针织", "真丝", "亚麻", "蕾丝"),
    "裤": ("棉", "牛仔布", "雪纺", "羊毛", "亚麻", "皮革", "丝绒", "针织"),
    "裙": ("棉", "牛仔布", "雪纺", "蕾丝", "针织", "真丝", "亚麻", "网纱", "丝绒", "羊毛"),
}
TYPE_DETAILS: dict[str, tuple[str, ...]] = {
    "上衣": ("口袋", "拼接", "连帽", "抽绳", "纽扣", "腰带", "收腰", "破洞"),
    "裤": ("口袋", "拼接", "抽绳", "破洞", "纽扣", "腰带"),
    "裙": ("口袋", "拼接", "纽扣", "腰带", "收腰", "吊带"),
}
# Values that do not go together on one garment.
CLASHES: tuple[tuple[set[str], set[str]], ...] = (
    ({"羊毛", "羊绒", "丝绒", "皮革"}, {"短袖", "无袖", "短裤", "五分裤"}),
    ({"T恤", "卫衣", "毛衣"}, {"双排扣", "单排扣", "系带", "腰带", "翻领"}),
    ({"马甲", "吊带"}, {"长袖", "短袖", "七分袖", "无袖", *phrases.SLEEVE_SHAPES}),
    ({"无袖"}, set(phrases.SLEEVE_SHAPES)),
    ({"西装", "风衣"}, {"连帽", "抽绳", "圆领", "一字领", "短袖", "泡泡袖", "飞飞袖"}),
    ({"西装", "风衣", "外套"}, {"方领", "一字领", "飞飞袖"}),
    ({"宽松"}, {"收腰", "铅笔裤", "包臀裙", "鱼尾裙", "性感"}),
    ({"背带裤", "背带裙"}, {"收腰", "吊带", "腰带", "系带", "高腰", "松紧腰"}),
    ({"半身裙"}, {*phrases.COLLARS, *phrases.SLEEVE_LENGTHS, *phrases.SLEEVE_SHAPES, "吊带"}),
    ({"系带", "腰带"}, {"腰带", "系带", "松紧腰"}),
    ({"吊带"}, {*phrases.COLLARS, *phrases.FASTENINGS}),
    ({"街头", "运动", "潮"}, {"蕾丝", "真丝", "雪纺", "网纱", "碎花", "荷叶边", "花边"}),
    ({"职场", "知性", "通勤"}, {"卡通", "破洞", "网纱"}),
    ({"西装", "毛衣", "风衣", "羊毛", "羊绒", "丝绒", "真丝", "雪纺"}, {"破洞"}),
    ({"淑女", "甜美", "性感"}, {"破洞", "皮革", "卡通"}),
    ({"铅笔裤", "小脚"}, {"阔腿裤", "直筒裤", "喇叭裤", "小脚"}),
    ({"喇叭裤", "铅笔裤"}, {"短裤", "五分裤"}),
    ({"双排扣", "单排扣"}, {"纽扣", "高领"}),
    ({"开叉"}, {"短裙"}),
    ({"背带裙", "毛衣", "卫衣"}, {"半身裙", "飞飞袖", "一字领"}),
    ({"运动", "街头", "潮"}, {"英伦", "淑女", "知性", "职场", "通勤", "甜美", "性感", "文艺"}),
)
CLASSIFIERS = {"上衣": "件", "裤": "条", "裙": "条"}
BODIES = {"上衣": "衣身", "裤": "裤身", "裙": "裙身"}
WORDING_WEIGHTS = (0.7, 0.3)


def sample_attributes(rng: random.Random) -> Attributes:
    """Draw an attribute list of three to eight entries that fit together, 类型 first."""
    while True:
        kind = rng.choice(("上衣", "裤", "裙"))
        attributes: Attributes = [("类型", kind)]
        for key, (chance, wordings) in {**SHARED_KEYS, **TYPE_KEYS[kind]}.items():
            if rng.random() < chance:
                attributes.append((key, rng.choice(_candidates(kind, key, wordings))))
                if key == "风格" and rng.random() < 0.15:
                    attributes.append((key, rng.choice(list(wordings))))
        if 3 <= len(attributes) <= 8 and _fits_together(attributes):
            return attributes


def _candidates(kind: str, key: str, wordings: phrases.Phrases) -> Sequence[str]:
    if key == "衣样式":
        return list(TOP_MATERIALS)
    if key == "材质":
        return TYPE_MATERIALS[kind] + (("羊毛", "羊绒", "皮革", "牛仔布") if kind == "上衣" else ())
    return TYPE_DETAILS[kind] if wordings is phrases.DETAILS else list(wordings)


def _fits_together(attributes: Attributes) -> bool:
    values = [value for _, value in attributes]
    if len(set(values)) < len(values):
        return False
    for left, right in CLASHES:
        if any(a in left and b in right and a != b for a in values for b in values):
            return False
    named = dict(attributes)
    material, kind = named.get("材质"), named["类型"]
    if material is None:
        return True
    return material in TOP_MATERIALS.get(named.get("衣样式", ""), TYPE_MATERIALS[kind])


def format_attributes(attributes: Attributes) -> str:
    """Write the list in ADGEN's form, ``类型#裙*材质#棉``."""
    return "*".join(f"{key}#{value}" for key, value in attributes)


def write_listing(attributes: Attributes) -> str:
    """Name the attributes one after the other, as a model does that was not taught better."""
    kind = attributes[0][1]
    grouped: dict[str, list[str]] = {}
    for key, value in attributes[1:]:
        grouped.setdefault(key, []).append(value)
    noun = "上衣" if kind == "上衣" else f"{kind}子"
    parts = [f"{key}是{'和'.join(values)}" for key, values in grouped.items()]
    return "，".join([f"这是一{CLASSIFIERS[kind]}{noun}", *parts]) + "。"


def name_garment(attributes: Attributes) -> str:
    """Return the noun the copy uses: the cut or the length where the list names one."""
    named = dict(attributes)
    kind = named["类型"]
    if kind == "上衣":
        return named.get("衣样式", "上衣")
    for key in ("裤长", "裤型", "裙长", "裙型"):
        if named.get(key, "").endswith(kind):
            return named[key]
    return f"{kind}子"


def write_copy(rng: random.Random, attributes: Attributes) -> str:
    """Write advertising copy in two to four sentences.

    The attributes fix what is said and, mostly, in which order; ``rng`` picks the wording.
    """
    details = _describe_details(rng, attributes)
    closing = _close(rng, attributes)
    sentences = [_open(rng, attributes)]
    if len(details) == 1:
        closing = f"{details.pop()}，{closing}"
    half = (len(details) + 1) // 2 if len(details) > 3 else len(details)
    for group in (details[:half], details[half:]):
        if group:
            sentences.append("，".join(group))
    return "。".join([*sentences, closing]) + "。"


def _pick(rng: random.Random, options: Sequence[str], attributes: Attributes) -> str:
    text = rng.choices(options, WORDING_WEIGHTS)[0]
    kind = attributes[0][1]
    return text.format(n=name_garment(attributes), b=BODIES[kind], c=CLASSIFIERS[kind])


def _open(rng: random.Random, attributes: Attributes) -> str:
    named = dict(attributes)
    kind = named["类型"]
    styles = [value for key, value in attributes if key == "风格"]
    adjective = _pick(rng, phrases.STYLE_ADJECTIVES[styles[0]], attributes) if styles else ""
    pronoun = rng.choices(("这款", f"这{CLASSIFIERS[kind]}"), WORDING_WEIGHTS)[0]
    subject = f"{pronoun}{adjective}{name_garment(attributes)}"
    if "材质" in named:
        subject += _pick(rng, phrases.MATERIALS[named["材质"]], attributes)
    elif "颜色" not in named:
        subject += _pick(rng, phrases.TYPE_OPENINGS[kind], attributes)
    if "颜色" in named and "材质" not in named:
        subject += rng.choices(phrases.COLOR_OPENINGS, WORDING_WEIGHTS)[0]
        subject += "，" + _pick(rng, phrases.COLORS[named["颜色"]], attributes)
    return subject


def _describe_details(rng: random.Random, attributes: Attributes) -> list[str]:
    kind = attributes[0][1]
    said_elsewhere = {"版型", "材质", "风格", "衣样式"}
    if "材质" not in dict(attributes):
        said_elsewhere.add("颜色")
    wordings = {key: table for key, (_, table) in {**SHARED_KEYS, **TYPE_KEYS[kind]}.items()}
    return [
        _pick(rng, wordings[key][value], attributes)
        for key, value in attributes[1:]
        if key not in said_elsewhere and wordings[key][value]
    ]


def _close(rng: random.Random, attributes: Attributes) -> str:
    styles = [value for key, value in attributes if key == "风格"]
    if styles:
        ending = _pick(rng, phrases.STYLE_CLOSINGS[styles[-1]], attributes)
    else:
        ending = _pick(rng, phrases.TYPE_CLOSINGS[attributes[0][1]], attributes)
    fit = dict(attributes).get("版型")
    return ending if fit is None else f"{_pick(rng, phrases.FITS[fit], attributes)}，{ending}"
