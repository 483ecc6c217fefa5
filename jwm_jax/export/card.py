"""Model cards: what a set of weights is, what it was trained on, and how it scores."""

from collections.abc import Mapping, Sequence


def model_card(
    name: str,
    summary: str,
    facts: Mapping[str, object],
    scores: Sequence[tuple[str, str, str]],
    limits: Sequence[str],
) -> str:
    """The text of a card.md.

    Args:
        name: Such as "worldrec-tiny".
        summary: What the model does, in a sentence or two.
        facts: Data, command, time, hardware, licence and the like, by name.
        scores: Rows of what was measured, the value with its unit, and the protocol or command.
        limits: Known failures and what the model is not for, a sentence each.

    Returns:
        Markdown.
    """
    lines = [f"# {name}", "", summary, ""]
    lines += [f"- **{key}**: {value}" for key, value in facts.items()]
    if scores:
        lines += ["", "## Scores", "", "| what | value | how |", "|---|---|---|"]
        lines += [f"| {what} | {value} | {how} |" for what, value, how in scores]
    if limits:
        lines += ["", "## Limits", "", *(f"- {limit}" for limit in limits)]
    return "\n".join(lines) + "\n"
