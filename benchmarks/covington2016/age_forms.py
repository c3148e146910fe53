"""How close to Figure 4's true curves functions of example age can come, whatever trains them.

Every video has a logit of its own that is linear in some functions of example age, with coefficients of its own, and
all of a moment's probabilities add up to one:

    p_v(t) = exp(Σ_k W_kv φ_k(age(t))) / Σ_u exp(Σ_k W_ku φ_k(age(t))).

W is fitted by maximum likelihood, to the true popularity (what the form can be at best) and to the training labels
(what the logs let it be). There are no users in it, no network, and no stopping early.
"""

import numpy as np
from scipy.optimize import minimize

STEPS = 1000
PENALTY = 1e-4  # of squared coefficients: a probability that is zero has no finite logit
CONSTANT, AGE, POWERS = "constant", "age", "age, age², √age"


def forms(age: np.ndarray) -> dict[str, np.ndarray]:
    """Functions of example age at some moments.

    Args:
      age: `[moments]` as the model has it, scaled to [0, 1].

    Returns:
      Name -> `[moments, functions]`, a constant among them; with bends, they lie evenly over the ages.
    """
    one = np.ones_like(age)
    powers = np.stack([one, age, age**2, np.sqrt(age)], axis=1)

    def bent(bends: int) -> np.ndarray:
        at = np.linspace(age.min(), age.max(), bends + 2)[1:-1]
        return np.concatenate([powers, np.maximum(age[:, None] - at, 0.0)], axis=1)

    return {
        CONSTANT: one[:, None],
        AGE: np.stack([one, age], axis=1),
        POWERS: powers,
        f"{POWERS} and 8 bends": bent(8),
        f"{POWERS} and 16 bends": bent(16),
    }


def most_likely(functions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The probabilities of a form under which what is given is most likely.

    Args:
      functions: `[moments, functions]` of full rank, a constant among them.
      weights: `[moments, videos]` how often each video was watched at each moment, or its share.

    Returns:
      `[moments, videos]`; rows sum to 1.
    """
    basis = np.linalg.qr(functions)[0] * np.sqrt(len(functions))  # the same span, well conditioned
    shape = (basis.shape[1], weights.shape[1])
    total, of_moment = weights.sum(), weights.sum(axis=1, keepdims=True)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        coefficients = flat.reshape(shape)
        log_p = _log_softmax(basis @ coefficients)
        gradient = basis.T @ (of_moment * np.exp(log_p) - weights) / total
        gradient += 2 * PENALTY * coefficients / shape[1]
        penalty = PENALTY * np.sum(coefficients**2) / shape[1]
        return float(penalty - np.sum(weights * log_p) / total), gradient.ravel()

    found = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
    return np.exp(_log_softmax(basis @ found.x.reshape(shape)))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
