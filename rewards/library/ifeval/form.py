"""Instructions about the form of a text: paragraphs, lists, marks, what it begins and ends with."""

from __future__ import annotations

import json
import re

CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
"""The answers that `constrained_response` allows."""


def paragraph_number(text: str, *, num_paragraphs: int) -> bool:
    """Check for exactly so many paragraphs between ``***``, none of them empty."""
    parts = [part.strip() for part in text.split("***")]
    parts = parts[not parts[0] : len(parts) - (len(parts) > 1 and not parts[-1])]
    return all(parts) and len(parts) == num_paragraphs


def nth_paragraph_first_word(
    text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """Check for so many paragraphs between empty lines, the nth of which begins with the word, in any
    case."""
    parts = [part.strip() for part in text.split("\n\n")]
    filled = sum(map(bool, parts))
    if filled != num_paragraphs or not 1 <= nth_paragraph <= filled or not parts[nth_paragraph - 1]:
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'\"")
    return re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


def bullet_number(text: str, *, num_bullets: int) -> bool:
    """Check for exactly so many lines that begin with ``*`` or ``-``."""
    return len(re.findall(r"^[^\S\n]*(?:\*[^*\n]|-)", text, re.MULTILINE)) == num_bullets


def highlight_number(text: str, *, num_highlights: int) -> bool:
    """Check for at least so many stretches ``*like this*`` or ``**like this**``."""
    stretches = re.findall(r"\*\*([^\n*]+)\*\*|\*([^\n*]+)\*", text)
    return sum(bool((bold or slanted).strip()) for bold, slanted in stretches) >= num_highlights


def section_number(text: str, *, section_spliter: str, num_sections: int) -> bool:
    """Check for at least so many sections that begin with the word and a number. (The data spell it
    so.)"""
    head = re.escape(section_spliter.strip())
    return len(re.findall(rf"{head}\s?\d+", text)) >= num_sections


def placeholder_number(text: str, *, num_placeholders: int) -> bool:
    """Check for at least so many ``[placeholders]``."""
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def postscript(text: str, *, postscript_marker: str) -> bool:
    """Check for a postscript with the marker somewhere, "P. S." and "P.P.S" in any case and spacing."""
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    marker = postscript_marker.strip()
    return re.search(patterns.get(marker, re.escape(marker)), text, re.IGNORECASE) is not None


def title(text: str) -> bool:
    """Check for a title ``<<like this>>`` on one line."""
    return any(inside.strip("<> \t") for inside in re.findall(r"<<([^\n]+)>>", text))


def json_only(text: str) -> bool:
    """Check for JSON and nothing else; one Markdown code block around it is allowed."""
    bare = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE)
    try:
        json.loads(bare.strip())
    except (ValueError, RecursionError):
        return False
    return True


def constrained_response(text: str) -> bool:
    """Check for one of the allowed answers."""
    return any(answer in text for answer in CONSTRAINED)


def two_responses(text: str) -> bool:
    """Check for two different answers with six asterisks between them."""
    parts = [part.strip() for part in text.split("******")]
    inner = parts[1:-1]
    filled = [part for part in parts if part]
    return all(inner) and len(filled) == 2 and filled[0] != filled[1]


def repeats_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    """Check that the text begins with the request, in any case."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def ends_with(text: str, *, end_phrase: str) -> bool:
    """Check that the text ends with the phrase, in any case; quotation marks around the text do not
    matter."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quoted(text: str) -> bool:
    """Check that the text stands between straight double quotation marks."""
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'
