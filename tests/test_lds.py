"""Attribution methods on a problem whose retrainings are affordable: damping, directions and number of networks varied."""

import numpy as np
import pandas as pd
import torch
from torch.func import grad, vmap
from torch.nn.functional import softplus

from lib.attribution.lds import lds, network, noisy_problem, subsets, train_many
from lib.attribution.trak import trak

REPORTED = {  # of the same kind of problem, 1, 5 and 20 networks
    "gradient dot product": (0.600, 0.663, 0.671),
    "TRAK, k = 64": (0.286, 0.539, 0.655),
    "Gauss-Newton influence, 0.1": (0.621, 0.698, 0.710),
}


def flat(weights, f, X, y):
    "Per-row gradients (rows, p) of a function of the signed logit difference"

    def value(w, x, t):
        return f((z := network(w, x[None])[0])[1].sub(z[0]) * (2 * t - 1))

    g = vmap(grad(value), (None, 0, 0))(weights, torch.as_tensor(X), torch.as_tensor(y))
    return torch.cat([v.flatten(1) for v in g.values()], 1).double()


def parts(weights, X, y, Xq, yq):
    "Gradients of loss and margin of the training rows, of margin of the queries, probability of the wrong answer"
    z = network(weights, torch.as_tensor(X))
    margin = (z[:, 1] - z[:, 0]) * torch.as_tensor(2 * y - 1)
    return (
        flat(weights, lambda m: softplus(-m), X, y),
        flat(weights, lambda m: m, X, y),
        flat(weights, lambda m: m, Xq, yq),
        torch.sigmoid(-margin).double(),
    )


def test_methods_predict_retraining_as_well_as_reported():
    X, y, Xq, yq = noisy_problem()
    masks = subsets(len(X), 100)

    def margins(w):
        return (
            (z := network(w, torch.as_tensor(Xq)))[..., 1]
            .sub(z[..., 0])
            .mul(torch.as_tensor(2 * yq - 1))
            .numpy()
        )

    outputs = np.stack([margins(train_many(X, y, masks, seed=s)) for s in (1, 2, 3, 4)], 1)
    full = train_many(X, y, np.ones((20, len(X)), bool), seed=9)
    each = [parts({k: v[m] for k, v in full.items()}, X, y, Xq, yq) for m in range(20)]
    g = torch.Generator().manual_seed(0)

    def dot(loss, own, query, wrong):
        return -loss @ query.T

    def newton(damping):
        def score(loss, own, query, wrong):
            H = (own.T * (wrong * (1 - wrong))) @ own / len(own)
            return -loss @ torch.linalg.solve(H + damping * torch.eye(len(H), dtype=H.dtype), query.T)

        return score

    rows = {"gradient dot product": lambda n: torch.stack([dot(*e) for e in each[:n]]).mean(0).numpy()}
    for damping in (1e-4, 1e-3, 1e-2, 1e-1):
        rows[f"Gauss-Newton influence, {damping:g}"] = lambda n, d=damping: (
            torch.stack([newton(d)(*e) for e in each[:n]]).mean(0).numpy()
        )
    for k in (32, 64, 128):
        P = [torch.randn(each[0][0].shape[1], k, generator=g, dtype=torch.float64) for _ in range(20)]
        rows[f"TRAK, k = {k}"] = lambda n, P=P: trak(
            [e[1] @ p for e, p in zip(each[:n], P)],
            [e[2] @ p for e, p in zip(each[:n], P)],
            [e[3] for e in each[:n]],
            each[0][0].shape[1],
        )
    table = pd.DataFrame(
        {
            name: {n: lds(score(n), masks, outputs)["value"] for n in (1, 5, 20)}
            for name, score in rows.items()
        }
    ).T
    intervals = {name: lds(rows[name](20), masks, outputs) for name in REPORTED}
    print(table.round(3), pd.DataFrame(intervals).T.round(3), sep="\n")
    for name, wanted in REPORTED.items():
        assert (table.loc[name].to_numpy() > np.array(wanted)).all(), name
    assert all(i["value"] < i["ceiling"] for i in intervals.values())
