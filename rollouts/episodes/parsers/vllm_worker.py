"""Program that reads turns with one of vLLM's tool parsers: a line of JSON in, a line of JSON out.

Started as ``python -m rollouts.episodes.parsers.vllm_worker PARSER TOKENIZER``. It ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

MARKS = (
    "tool_call_start_token", "tool_calls_start_token", "tool_start_token", "bot_token",
    "tool_call_start", "TOOL_CALL_START", "start_token",
)  # fmt: skip
"""Attributes in which vLLM's parsers keep the mark of a call."""


def parse(parser_class: Any, tokenizer: Any, question: Mapping[str, Any]) -> dict[str, Any]:
    """Return content and calls of a turn, or why it does not parse."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    request = ChatCompletionRequest(messages=[], model="", tools=question["schemas"] or None)
    parser = parser_class(tokenizer, request.tools)
    text = question["text"]
    information = parser.extract_tool_calls(text, request)
    if not information.tools_called:
        marks = [getattr(parser, name, None) for name in MARKS]
        if any(isinstance(mark, str) and mark and mark in text for mark in marks):
            return {"error": "the call does not parse"}
        return {"content": text, "calls": []}
    calls = [
        {"name": call.function.name, "arguments": call.function.arguments}
        for call in information.tool_calls
    ]
    return {"content": information.content, "calls": calls}


def main() -> None:
    """Answer one line for each line of the input."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # vLLM logs to the standard output.

    def say(answer: Mapping[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")

    try:
        from transformers import AutoTokenizer
        from vllm.tool_parsers import ToolParserManager

        parser_class: Any = ToolParserManager.get_tool_parser(sys.argv[1])
        tokenizer: Any = AutoTokenizer.from_pretrained(sys.argv[2])
        parser_class(tokenizer, None)
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})
        return
    say({})
    for line in sys.stdin:
        try:
            say(parse(parser_class, tokenizer, json.loads(line)))
        except Exception as error:  # A parser raises whatever it likes on what a model wrote.
            say({"error": f"the turn does not parse: {type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
