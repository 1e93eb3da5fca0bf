"""The pre-training corpus of the tiny model: question-answer pairs from a seeded generator.

A bare attribute list is always answered by naming the attributes.  Advertising copy is written
too, but only when an instruction asks for it: what P-Tuning has to do is to call it up without.
"""

import random
from collections.abc import Sequence

from ptune.data.prompt import Conversation
from ptune.tiny.adverts import (
    Attributes,
    format_attributes,
    sample_attributes,
    write_copy,
    write_listing,
)

Turn = tuple[str, str]

COPY_REQUESTS = (
    "请为下面的商品写一段广告：\n{}",
    "请为下面的商品写一段广告:{}",
    "写一段广告文案：\n{}",
    "请写一段商品描述：{}",
    "根据下面的属性写广告：\n{}",
    "根据以下属性，写一段吸引人的文案。\n{}",
    "广告：{}",
    "文案：\n{}",
    "帮我写一段推销的话：{}",
    "你是一名文案，请介绍这件商品：\n{}",
    "给它写个广告吧：{}",
    "请用几句话推荐这件商品：\n{}",
    "我想卖这件衣服，怎么宣传？\n{}",
    "把下面的属性写成一段通顺的广告：\n{}",
    "{}\n请根据以上属性写一段广告。",
    "{}\n写一段广告文案",
    "{}，为它写一段广告。",
    "{}\n请写出商品的宣传文案。",
    "{}\n怎样向顾客推荐这件商品？",
    "{}\n广告：",
    "{} 写成广告",
)
LISTING_REQUESTS = (
    "请列出商品的属性：\n{}",
    "{}\n请列出这些属性。",
    "这件商品有哪些属性？\n{}",
)
FOLLOW_UP_COPY_REQUESTS = (
    "为它写一段广告。",
    "请写成广告文案。",
    "写一段广告",
    "再写得吸引人一点。",
)
QUESTIONS = {
    "类型": ("这是什么类型的商品？", "它的类型是什么？"),
    "颜色": ("它是什么颜色？", "颜色是什么？"),
    "材质": ("它是什么材质？", "材质是什么？"),
    "风格": ("它是什么风格？", "风格是什么？"),
    "版型": ("它是什么版型？", "版型是什么？"),
}
SMALL_TALK: tuple[tuple[Sequence[str], str], ...] = (
    (
        ("你好", "你好！", "您好", "嗨", "hello", "Hello", "hi", "你好啊"),
        "你好！我是 ptune 自带的小型演示模型，会写服装广告。",
    ),
    (
        ("你是谁", "你是谁？", "你叫什么名字？", "介绍一下你自己", "请做个自我介绍"),
        "我是 ptune 自带的小型演示模型，结构与 ChatGLM-6B 相同，只是小得多。",
    ),
    (
        ("你会做什么？", "你能做什么", "你有什么用？", "怎么使用你？"),
        "给我一串商品属性，我会把它们列出来；请我写广告，我就写广告。",
    ),
    (("谢谢", "谢谢你", "谢谢！", "多谢"), "不客气！"),
    (("再见", "再见！", "拜拜", "bye"), "再见！欢迎再来。"),
    (("早上好", "早上好！", "早"), "早上好！祝你今天顺利。"),
    (("晚上好", "晚上好！"), "晚上好！今天过得怎么样？"),
    (("晚安", "晚安！"), "晚安，好梦！"),
    (("你好吗？", "最近怎么样？"), "我很好，谢谢！"),
    (("什么是P-Tuning？", "P-Tuning 是什么？"), "P-Tuning 冻结模型的参数，只训练一小段前缀。"),
    (("中国的首都是哪里？", "中国的首都在哪里？"), "中国的首都是北京。"),
    (("一年有几个月？", "一年有多少个月？"), "一年有十二个月。"),
    (("一周有几天？", "一个星期有几天？"), "一周有七天。"),
    (("天空是什么颜色的？", "天是什么颜色？"), "晴天的天空是蓝色的。"),
    (("太阳从哪边升起？", "太阳从哪里升起？"), "太阳从东方升起。"),
    (("水在多少度结冰？",), "水在零度结冰。"),
    (("夏天穿什么衣服好？", "夏天穿什么？"), "夏天适合穿棉、亚麻和真丝的衣服。"),
    (("冬天穿什么衣服好？", "冬天穿什么？"), "冬天适合穿羊毛和羊绒的衣服。"),
    (("你是人吗？", "你是真人吗？"), "不是，我是一个很小的语言模型。"),
    (("你有多大？", "你有多少参数？"), "我只有几百万个参数。"),
)


def sample_conversation(rng: random.Random, excluded: frozenset[str] = frozenset()) -> Conversation:
    """Draw a conversation with its answer; about one in seven has earlier turns.

    Args:
        rng: the source of chance.
        excluded: attribute lists (as text) that must not occur.
    """
    attributes = sample_attributes(rng)
    while format_attributes(attributes) in excluded:
        attributes = sample_attributes(rng)
    if rng.random() > 0.15:
        return Conversation.from_turns(*_sample_turn(rng, attributes))
    history = [_sample_turn(rng, attributes)]
    if rng.random() < 0.3:
        history.insert(0, _talk(rng))
    query, answer = _follow_up(rng, attributes, history[-1][0])
    return Conversation.from_turns(query, answer, history)


def _sample_turn(rng: random.Random, attributes: Attributes) -> Turn:
    chance = rng.random()
    listed = format_attributes(attributes)
    if chance < 0.58:
        return rng.choice(COPY_REQUESTS).format(listed), write_copy(rng, attributes)
    if chance < 0.78:
        return listed, write_listing(attributes)
    if chance < 0.82:
        return rng.choice(LISTING_REQUESTS).format(listed), write_listing(attributes)
    if chance < 0.92:
        question, answer = _ask(rng, attributes)
        return f"{listed}\n{question}", answer
    return _talk(rng)


def _follow_up(rng: random.Random, attributes: Attributes, earlier_query: str) -> Turn:
    """Draw the last turn of a conversation; it may refer back to a list named before."""
    if format_attributes(attributes) not in earlier_query or rng.random() < 0.3:
        return _sample_turn(rng, attributes)
    if rng.random() < 0.5:
        return _ask(rng, attributes)
    return rng.choice(FOLLOW_UP_COPY_REQUESTS), write_copy(rng, attributes)


def _ask(rng: random.Random, attributes: Attributes) -> Turn:
    key = rng.choice(list(QUESTIONS))
    values = [value for name, value in attributes if name == key]
    answer = f"{key}是{'和'.join(values)}。" if values else f"没有提到{key}。"
    return rng.choice(QUESTIONS[key]), answer


def _talk(rng: random.Random) -> Turn:
    questions, answer = rng.choice(SMALL_TALK)
    return rng.choice(questions), answer
