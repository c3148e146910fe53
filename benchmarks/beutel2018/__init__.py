"""The experiments of Beutel et al. 2018 (Latent Cross), one file each; `upnext reproduce NAME` runs them."""

EXPERIMENTS = {
    "low_rank_crosses": "Latent Cross, Table 3: products of embeddings by ReLU layers and by a latent cross",
    "discrete_crosses": "Latent Cross, Figure 5: factors that belong to pairs, by deep networks and by factorization",
    "context_fusion": "Latent Cross, Table 4, Figures 3 and 4: context crossed, concatenated, left out",
}
"""Name of each experiment, and of its module, with what it shows."""

OWN_DATA = ("low_rank_crosses", "discrete_crosses")
"""Those that make their own data and have no configuration."""
