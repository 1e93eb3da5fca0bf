"""What the page says, in the languages that a browser may ask for."""

from __future__ import annotations

# The keys stand for nothing else on the page: Gradio would translate a prefix of such a name.
ENGLISH = {
    "ptune_prefix": "Prefix",
    "ptune_compare": "Beside it, the bare model",
    "ptune_bare": "Bare model",
    "ptune_question": "Question",
    "ptune_ask": "Ask",
    "ptune_stop": "Stop",
    "ptune_retry": "Retry",
    "ptune_clear": "Clear",
    "ptune_examples": "Questions of the training data",
    "ptune_about": "Background text",
    "ptune_about_info": "Questions are about this text; leave it empty to ask freely.",
    "ptune_answers": "Answers",
    "ptune_max_new_tokens": "Longest answer (tokens)",
    "ptune_temperature": "Temperature",
    "ptune_temperature_info": "0 gives the likeliest answer, the same every time.",
    "ptune_top_p": "Top p",
    "ptune_top_k": "Top k",
    "ptune_top_k_info": "0 draws from all tokens.",
}
CHINESE = {
    "ptune_prefix": "前缀",
    "ptune_compare": "同时显示原模型的回答",
    "ptune_bare": "原模型",
    "ptune_question": "问题",
    "ptune_ask": "提问",
    "ptune_stop": "停止",
    "ptune_retry": "重试",
    "ptune_clear": "清空",
    "ptune_examples": "训练数据中的问题",
    "ptune_about": "背景资料",
    "ptune_about_info": "问题针对这段文字；留空则自由提问。",
    "ptune_answers": "生成参数",
    "ptune_max_new_tokens": "回答的最大长度（token）",
    "ptune_temperature": "温度",
    "ptune_temperature_info": "0 表示总是选最可能的回答，每次相同。",
    "ptune_top_p": "Top p",
    "ptune_top_k": "Top k",
    "ptune_top_k_info": "0 表示从所有 token 中抽取。",
}
_NOTICES = {
    "turns_dropped": (
        "The oldest turns no longer fit: the model does not see the first {}.",
        "对话太长：模型看不到最早的 {} 轮。",
    ),
    "context_cut": (
        "The background text is longer than fits: the first {:,} of its {:,} characters are used.",
        "背景资料太长：共 {1:,} 字，只使用前 {0:,} 字。",
    ),
    "prompt_cut": (
        "The question is longer than fits: its end is cut.",
        "问题太长：结尾被截断。",
    ),
    "error": ("No answer", "无法回答"),
    "empty": ("The answer is empty.", "回答为空。"),
    "busy": ("Wait for the answer, or stop it.", "请等待回答结束，或先停止。"),
}


def notice(kind: str, accept_language: str, *numbers: int) -> str:
    """A notice in the language of a browser.

    Args:
        kind: which.
        accept_language: the header of that name.
        numbers: that stand in it.
    """
    english, chinese = _NOTICES[kind]
    text = chinese if accept_language.lower().startswith("zh") else english
    return text.format(*numbers)
