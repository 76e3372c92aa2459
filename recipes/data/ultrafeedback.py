"""Which of UltraFeedback's pairs to train on."""


def is_clear(row: dict[str, float]) -> bool:
    """Whether the chosen answer was judged better than the rejected one."""
    return row["score_chosen"] > row["score_rejected"]
