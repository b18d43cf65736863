"""What made a case's two masks, version included: infection ratios of different segmenters do not compare."""

from dataclasses import dataclass

GIVEN = "given"


@dataclass(frozen=True)
class MaskNames:
    """What made each mask: "given" (the hospital's own file), or a method with its version: "classical-2"."""

    lungs: str
    infection: str

    def __str__(self) -> str:
        if self.lungs == self.infection == GIVEN:
            return GIVEN
        return f"lungs {self.lungs}, infection {self.infection}"
