"""What Yin et al. 2021 report, shown beside the measures of an evaluation."""

SOURCE = "Yin et al. 2021"

# Table 2: value, lower and upper end of the 95 % interval.
TABLE_2 = {
    "significant": {
        "auc": (0.92, 0.86, 0.97),
        "specificity": (0.917, 0.820, 0.968),
        "sensitivity": (0.830, 0.717, 0.947),
        "accuracy": (0.883, 0.815, 0.945),
    },
    "advanced": {
        "auc": (0.89, 0.83, 0.96),
        "specificity": (0.882, 0.778, 0.956),
        "sensitivity": (0.795, 0.682, 0.925),
        "accuracy": (0.852, 0.770, 0.920),
    },
    "cirrhosis": {
        "auc": (0.88, 0.79, 0.94),
        "specificity": (0.865, 0.789, 0.944),
        "sensitivity": (0.751, 0.565, 0.867),
        "accuracy": (0.833, 0.762, 0.900),
    },
}

# Fig. 5: median and quartiles of the liver's weight by predicted stage. The paper does not say what
# its weights are relative to; that it is the body's mean is an assumption.
LIVER_WEIGHT = {"F0": (0.58, 0.43, 0.75), "F4": (1.43, 1.22, 1.63)}
