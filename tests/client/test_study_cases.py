"""A site that is prepared for another study says which line of site.toml makes the difference."""

from dataclasses import replace
from pathlib import Path

import pytest
from study_terms import STUDY_TERMS

from client.site import read_site
from client.study_cases import RefusedError, study_cases
from dsan_model.preprocessing import Recipe

SHAPE_DHW = (14, 22, 26)


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (Recipe((14, 22, 24)).digest, "the study needs shape_dhw = [14, 22, 24], antialias = false"),
        (
            Recipe((14, 22, 24), antialias=True).digest,
            "prepared with shape_dhw = [14, 22, 26], antialias = false, the study needs "
            "shape_dhw = [14, 22, 24], antialias = true: write that under [recipe] in site.toml",
        ),
        ("0" * 64, "of another version than this release's: install the release"),
    ],
)
def test_a_study_of_another_recipe_is_refused_with_the_lines_to_write(
    tmp_path: Path, wanted: str, told: str
) -> None:
    (tmp_path / "site.toml").write_text(f'name = "a"\n[recipe]\nshape_dhw = {list(SHAPE_DHW)}\n')
    terms = replace(STUDY_TERMS, input_shape_dhw=(14, 22, 24), recipe_digest=wanted)
    with pytest.raises(RefusedError) as refused:
        study_cases(read_site(tmp_path / "site.toml"), terms)
    assert refused.value.code == "SITE-RECIPE"
    assert told in refused.value.message
