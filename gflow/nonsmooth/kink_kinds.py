"""What can happen at a kink."""

from enum import IntEnum


class KinkKind(IntEnum):
    """What happened at the kink of a unit at a row of data."""

    CROSS_TO_ACTIVE = 0
    CROSS_TO_INACTIVE = 1
    SLIDE_BEGINS = 2
    SLIDE_ENDS_TO_ACTIVE = 3
    SLIDE_ENDS_TO_INACTIVE = 4
    # The unit slides in all directions at once: w = b = 0.
    UNIT_DEGENERATES = 5
    # Nothing pulls to the kink any more: the flow could go on to either side, and takes the
    # inactive one.
    SLIDE_BRANCHES = 6

    @property
    def label(self) -> str:
        """The name in words, such as "slide begins"."""
        return self.name.replace("_", " ").lower()

    @property
    def begins_slide(self) -> bool:
        return self in (KinkKind.SLIDE_BEGINS, KinkKind.UNIT_DEGENERATES)

    @property
    def ends_slide(self) -> bool:
        ends = (KinkKind.SLIDE_ENDS_TO_ACTIVE, KinkKind.SLIDE_ENDS_TO_INACTIVE)
        return self in (*ends, KinkKind.SLIDE_BRANCHES)
