from eagle_jax.evaluation import tables
from tests.evaluation.synthetic import make_row

FIRST = make_row("eagle3, 60 nodes", "mt_bench", 0.0, speedup=2.0, tau=3.0, accepted=[1, 1, 2])
SECOND = {**FIRST, "task": "gsm8k", "speedup": 1.0, "tau": 4.0, "accepted": [0, 4, 0], "identical_prompts": 9}
OTHER = {**make_row("prompt lookup", "gsm8k", 0.0, speedup=None, tau=None), "accepted": [3, 1]}
ROWS = [FIRST, {**SECOND, "first_difference_margin": 2.5e-5}, OTHER]


def test_methods_by_tasks() -> None:
    assert tables.method_table(ROWS).splitlines() == [
        "| method | nodes, depth, top-k | mt_bench | gsm8k | mean |",
        "|---|---|---|---|---|",
        "| eagle3, 60 nodes | 60, 7, 10 | 2.00 (3.00) | 1.00 (4.00) | 1.50 (3.50) |",
        "| prompt lookup | 11, 9, 1 | - (-) | - (-) | - (-) |",
    ]


def test_seeds_are_averaged() -> None:
    assert "| 3.00 (3.00) | 3.00 (3.00) |" in tables.method_table([FIRST, {**FIRST, "seed": 1, "speedup": 4.0}])


def test_speed_and_exactness() -> None:
    table = tables.speed_table(ROWS).splitlines()
    assert table[2].startswith("| eagle3, 60 nodes | ")
    assert table[2].endswith("| 19 of 20 | 2.5e-05 |")
    assert table[3].endswith("| 10 of 10 | - |")


def test_acceptance_counts_all_tasks_together() -> None:
    rows = [{**row, "accepted": [20 * count for count in row["accepted"]]} for row in ROWS]
    assert tables.acceptance_table(rows).splitlines() == [
        "| method | 0-alpha | 1-alpha |",
        "|---|---|---|",
        "| eagle3, 60 nodes | 0.88 | 0.29 |",
        "| prompt lookup | 0.25 | - |",
    ]


def test_trees() -> None:
    assert tables.tree_text({"nodes": 1, "depth": None, "top_k": None}) == "1, -, -"
