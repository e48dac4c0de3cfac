"""What the references of a configuration, `${width}`, may stand for at most."""

LARGEST = 1 << 26  # characters
MOST = 24  # references; looking up what 3^8 of them stand for takes seconds


def refuse_growth(text: str) -> None:
    """Raise ValueError where references could stand for more than memory and patience hold, as `a: ${b}${b}`, `b: ${c}${c}`.

    R references make the most of a text where each level names the next one three times: 3^(R/3) copies of it.
    """
    count = text.count("${")
    if count > MOST or (count and len(text) * 3 ** (count / 3) > LARGEST):
        raise ValueError(
            f"its {count} references could stand for very much: at most {MOST}, and {LARGEST:,} characters, are looked up; write the values"
        )
