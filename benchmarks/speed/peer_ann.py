"""faiss and hnswlib over given vectors: runs in the peers' environment, imports nothing of ours.

python peer_ann.py LIBRARY VECTORS.npy QUERIES.npy K. Builds, prints a line of JSON (settings, seconds, bytes), and then
answers every line read, the number of a setting, with the latencies of all queries one by one and what they found.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def faiss_index(vectors, k):
    import faiss

    faiss.omp_set_num_threads(2)
    leaves = max(round(2 * len(vectors) ** 0.5), 4)
    index = faiss.index_factory(vectors.shape[1], f"IVF{leaves},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors[np.random.default_rng(0).permutation(len(vectors))[:200_000]])
    index.add(vectors)
    faiss.omp_set_num_threads(1)  # one query does not fill two threads
    size = faiss.serialize_index(index).nbytes

    def search(query, probes):
        index.nprobe = probes
        return index.search(query[np.newaxis], k)[1][0]

    return (
        [f for f in (25, 50, 100, 200) if f <= leaves] or [leaves],
        search,
        size,
        f"faiss {faiss.__version__} IVF{leaves},SQ8, nprobe",
    )


def hnswlib_index(vectors, k):
    import hnswlib

    # Largest dot products as nearest neighbours: with one more axis all vectors are equally long. On dot products
    # themselves the graph loses a quarter of the recall.
    lengths = np.linalg.norm(vectors, axis=1)
    rest = np.sqrt(np.maximum(lengths.max() ** 2 - lengths**2, 0))
    vectors = np.concatenate([vectors, rest[:, np.newaxis]], axis=1).astype(np.float32)
    index = hnswlib.Index("l2", vectors.shape[1])
    index.init_index(len(vectors), M=16, ef_construction=100, random_seed=0)
    index.add_items(vectors, num_threads=2)
    index.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        index.save_index(f"{folder}/index")
        size = Path(folder, "index").stat().st_size

    def search(query, ef):
        index.set_ef(ef)
        return index.knn_query(np.append(query, np.float32(0)), k)[0][0]

    return [100, 200, 400, 800], search, size, "hnswlib M=16, ef"


def main():
    library, vectors, queries = sys.argv[1], np.load(sys.argv[2]), np.load(sys.argv[3])
    started = time.perf_counter()
    settings, search, size, name = {"faiss": faiss_index, "hnswlib": hnswlib_index}[library](vectors, int(sys.argv[4]))
    seconds = time.perf_counter() - started
    names = [f"{name} {setting}" for setting in settings]
    print(json.dumps({"names": names, "seconds": seconds, "bytes": size}), flush=True)
    for line in sys.stdin:
        setting = settings[int(line)]
        found, latencies = [], []
        for query in queries:
            started = time.perf_counter()
            rows = search(query, setting)
            latencies.append(time.perf_counter() - started)
            found.append([int(row) for row in rows])
        print(json.dumps({"latencies": latencies, "found": found}), flush=True)


main()
