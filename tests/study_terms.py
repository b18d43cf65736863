"""What a small study tells its sites; tests replace what they are about."""

from dsan_model.network import NetworkConfig
from dsan_model.protocol import StudyTerms
from dsan_model.training import TrainingConfig

STUDY_TERMS = StudyTerms(
    name="study",
    digest="ab" * 32,
    seed=0,
    input_shape_dhw=(16, 32, 32),
    recipe_digest="cd" * 32,
    network=NetworkConfig(),
    training=TrainingConfig(),
    folds=5,
    fold=0,
    branches=(),
)
