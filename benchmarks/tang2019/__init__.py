"""The experiments of Tang et al. 2019 (M3), one file each; `upnext reproduce NAME` runs them."""

EXPERIMENTS = {
    "temporal_range": "M3, Tables 2, 4, 5 and 6: mixtures of temporal ranges beside single ranges; gates",
    "sequence_lengths": "M3, Figure 4: mixtures beside a recurrent cell and Caser by the length of sequences",
    "outside_peers": "sequence models beside RecBole's GRU4Rec, SASRec and Caser on the same split, metric and budget",
    "sparse_gates": "M3, section 6: gates that leave encoders out when serving, accuracy against latency",
}
"""Name of each experiment, and of its module, with what it shows."""
