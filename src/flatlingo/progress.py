"""How long things take, in words."""

LINE_SECONDS = 60  # between two lines of progress where there is no bar


def duration(seconds: float) -> str:
    """Write a duration for people.

    >>> duration(42), duration(754), duration(7400)
    ('42 s', '13 min', '2 h 3 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
