"""The experiments of Covington, Adams and Sargin 2016, one file each; `upnext reproduce NAME` runs them."""

EXPERIMENTS = {
    "ranker_layers": "Table 1: hidden layers of the ranker; without powers, equal weights",
    "features_and_depth": "Figure 6: MAP by features and depth of the candidate generator",
    "example_age": "Figure 4: probability of a fresh video by days since its upload, with and without example age",
    "label_choice": "Figure 5: predicting the next watch against a randomly held-out one",
    "watch_time_weighting": "Section 4: clickbait under watch-time odds and under clicks; calibration of both odds",
}
"""Name of each experiment, and of its module, with what it shows."""
