"""Tables I, II and III as the paper prints them; the report shows them beside its own, for orientation.

Values are text, so that they stand on the page exactly as published: TV set (training and validation) as
one pooled figure, test set as mean ± standard deviation over the five models of the folds.
"""

from typing import Final

from dsan_model.cases import RatioGroup
from dsan_model.sampling import DUAL_SAMPLING, Branch

RN34_US: Final = Branch.BASELINE.model_name
ATTENTION_US: Final = Branch.US.model_name
ATTENTION_SS: Final = Branch.SS.model_name
ATTENTION_DS: Final = DUAL_SAMPLING
MODELS: Final = (RN34_US, ATTENTION_US, ATTENTION_SS, ATTENTION_DS)

RATIO_GROUPS: Final = tuple(RatioGroup)

PAPER_W_OUTSIDE: Final = 0.35  # III-E: infection ratio below 0.001 or above 0.030
PAPER_W_INSIDE: Final = 0.96

# characteristic -> group -> (TV set, test set)
TABLE1: Final[dict[str, dict[str, tuple[str, str]]]] = {
    "images (patients)": {
        "COVID-19": ("1094 (960)", "2295 (1605)"),
        "CAP": ("1092 (628)", "501 (452)"),
        "total": ("2186 (1588)", "2796 (2057)"),
    },
    "age": {
        "COVID-19": ("50.0 (14–89)", "50.0 (8–95)"),
        "CAP": ("57.0 (12–94)", "42.0 (15–98)"),
        "total": ("53.0 (12–94)", "49.0 (8–98)"),
    },
    "female/male": {
        "COVID-19": ("479/481", "800/805"),
        "CAP": ("322/306", "255/197"),
        "total": ("801/787", "1055/1002"),
    },
}

# metric -> model -> (TV set, test set)
TABLE2: Final[dict[str, dict[str, tuple[str, str]]]] = {
    "auc": {
        RN34_US: ("0.984", "0.934 ± 0.011"),
        ATTENTION_US: ("0.986", "0.948 ± 0.003"),
        ATTENTION_SS: ("0.987", "0.938 ± 0.002"),
        ATTENTION_DS: ("0.988", "0.944 ± 0.003"),
    },
    "accuracy": {
        RN34_US: ("0.945", "0.859 ± 0.013"),
        ATTENTION_US: ("0.947", "0.879 ± 0.012"),
        ATTENTION_SS: ("0.951", "0.869 ± 0.008"),
        ATTENTION_DS: ("0.954", "0.875 ± 0.009"),
    },
    "sensitivity": {
        RN34_US: ("0.931", "0.856 ± 0.029"),
        ATTENTION_US: ("0.941", "0.872 ± 0.018"),
        ATTENTION_SS: ("0.953", "0.868 ± 0.020"),
        ATTENTION_DS: ("0.954", "0.869 ± 0.016"),
    },
    "specificity": {
        RN34_US: ("0.959", "0.870 ± 0.071"),
        ATTENTION_US: ("0.953", "0.907 ± 0.029"),
        ATTENTION_SS: ("0.948", "0.876 ± 0.048"),
        ATTENTION_DS: ("0.954", "0.901 ± 0.025"),
    },
    "f1": {
        RN34_US: ("0.945", "0.798 ± 0.011"),
        ATTENTION_US: ("0.947", "0.825 ± 0.013"),
        ATTENTION_SS: ("0.951", "0.811 ± 0.004"),
        ATTENTION_DS: ("0.954", "0.820 ± 0.008"),
    },
}

# class -> the three ratio groups of the TV set, then those of the test set
TABLE3_IMAGES: Final[dict[str, tuple[int, int, int, int, int, int]]] = {
    "COVID-19": (151, 318, 625, 363, 718, 1214),
    "CAP": (838, 183, 71, 436, 41, 24),
}

# metric -> model -> the three ratio groups of the TV set, then those of the test set
TABLE3: Final[dict[str, dict[str, tuple[str, str, str, str, str, str]]]] = {
    "auc": {
        RN34_US: ("0.949", "0.975", "0.972", "0.796 ± 0.032", "0.914 ± 0.021", "0.905 ± 0.011"),
        ATTENTION_US: ("0.958", "0.974", "0.986", "0.835 ± 0.012", "0.923 ± 0.005", "0.906 ± 0.016"),
        ATTENTION_SS: ("0.958", "0.981", "0.986", "0.816 ± 0.007", "0.919 ± 0.004", "0.906 ± 0.014"),
        ATTENTION_DS: ("0.960", "0.981", "0.987", "0.830 ± 0.011", "0.919 ± 0.004", "0.907 ± 0.015"),
    },
    "accuracy": {
        RN34_US: ("0.930", "0.930", "0.976", "0.719 ± 0.015", "0.848 ± 0.037", "0.955 ± 0.007"),
        ATTENTION_US: ("0.932", "0.930", "0.981", "0.752 ± 0.017", "0.871 ± 0.017", "0.965 ± 0.008"),
        ATTENTION_SS: ("0.938", "0.942", "0.974", "0.747 ± 0.006", "0.858 ± 0.018", "0.955 ± 0.009"),
        ATTENTION_DS: ("0.941", "0.942", "0.981", "0.755 ± 0.012", "0.859 ± 0.016", "0.962 ± 0.007"),
    },
    "sensitivity": {
        RN34_US: ("0.675", "0.925", "0.995", "0.514 ± 0.093", "0.851 ± 0.042", "0.962 ± 0.007"),
        ATTENTION_US: ("0.722", "0.937", "0.997", "0.534 ± 0.050", "0.875 ± 0.021", "0.972 ± 0.008"),
        ATTENTION_SS: ("0.815", "0.953", "0.987", "0.569 ± 0.061", "0.862 ± 0.020", "0.960 ± 0.010"),
        ATTENTION_DS: ("0.795", "0.953", "0.994", "0.549 ± 0.049", "0.863 ± 0.018", "0.968 ± 0.008"),
    },
    "specificity": {
        RN34_US: ("0.976", "0.940", "0.803", "0.889 ± 0.074", "0.810 ± 0.078", "0.617 ± 0.062"),
        ATTENTION_US: ("0.970", "0.918", "0.845", "0.933 ± 0.024", "0.785 ± 0.090", "0.642 ± 0.037"),
        ATTENTION_SS: ("0.961", "0.923", "0.859", "0.896 ± 0.051", "0.785 ± 0.047", "0.667 ± 0.051"),
        ATTENTION_DS: ("0.968", "0.923", "0.873", "0.926 ± 0.025", "0.790 ± 0.051", "0.650 ± 0.037"),
    },
    "f1": {
        RN34_US: ("0.853", "0.926", "0.928", "0.698 ± 0.022", "0.643 ± 0.035", "0.663 ± 0.018"),
        ATTENTION_US: ("0.863", "0.925", "0.946", "0.732 ± 0.022", "0.662 ± 0.015", "0.702 ± 0.026"),
        ATTENTION_SS: ("0.882", "0.938", "0.929", "0.732 ± 0.009", "0.648 ± 0.020", "0.671 ± 0.018"),
        ATTENTION_DS: ("0.885", "0.938", "0.947", "0.737 ± 0.017", "0.649 ± 0.017", "0.692 ± 0.018"),
    },
}
