"""What a report says of a study that differs from the paper: everything, and in words."""

from typing import Any

from server.differences import WORDS, differences_from_paper
from server.study import StudyConfig, preset_study


def changed(**values: Any) -> StudyConfig:
    return StudyConfig.model_validate({"name": "study", **values})


def settings_that_differ(study: StudyConfig) -> list[tuple[str, str, str]]:
    return [(d.key, d.paper, d.here) for d in differences_from_paper(study)[2:] if d.key]


def test_the_papers_values_leave_what_is_so_in_every_federated_study() -> None:
    training, statistics = differences_from_paper(StudyConfig(name="study"))
    assert training.here.startswith("20 rounds of one epoch at each site")
    assert "at those of the first batch" in statistics.here


def test_the_demo_says_everything_that_it_changes() -> None:
    study = preset_study("demo", "study", 0)
    rows = {key: (paper, here) for key, paper, here in settings_that_differ(study)}
    assert rows["input.shape_dhw"] == ("138 x 256 x 256", "32 x 64 x 64")
    assert rows["network.blocks"] == ("3 x 4 x 6 x 3", "1 x 1 x 1 x 1")
    assert rows["training.learning_rate"] == ("0.0002", "0.005")
    assert rows["training.flips"] == ("no", "yes")
    paper = StudyConfig(name="study", preset="demo").model_dump() | {"rounds": study.rounds}
    for what in rows:
        table, _, key = what.partition(".")
        paper[table] = {**paper[table], key: getattr(getattr(study, table), key)}
    assert StudyConfig.model_validate(paper) == study  # the paper and these differences make the demo


def test_a_smaller_network_is_told_by_its_parameters_too() -> None:
    parameters = differences_from_paper(preset_study("demo", "study", 0))[-1]
    assert (parameters.paper, parameters.here) == ("63,470,145", "224,873")


def test_a_difference_in_any_table_is_told() -> None:
    study = changed(
        folds=2,
        training={"weight_decay": 0.0},
        input={"antialias": True},
        aggregation={"server_momentum": 0.9},
    )
    assert settings_that_differ(study) == [
        ("input.antialias", "no", "yes"),
        ("training.weight_decay", "0.0001", "0.0"),
        ("aggregation.server_momentum", "0.0", "0.9"),
        ("folds", "5", "2"),
    ]


def test_every_key_that_decides_what_is_computed_has_words() -> None:
    tables = ("input", "network", "training", "aggregation", "segmentation")
    fields = StudyConfig.model_fields
    keys = {f"{t}.{key}" for t in tables for key in fields[t].default.__class__.model_fields}
    assert keys - {"training.local_epochs"} <= set(WORDS)
