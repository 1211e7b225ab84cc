"""Fails unless the newest run keeps what the README says of `make demo`."""

import json
import sys
from pathlib import Path

newest = max(Path("checkpoints").glob("*/metrics.json"), key=lambda path: path.stat().st_mtime)
metrics = json.loads(newest.read_text(encoding="utf-8"))
before, after, best = metrics["before"], metrics["after"], metrics["after, 8 tries"]
promises = {
    "at least 200 held-out titles": after["fact_titles"] >= 200,
    "at least 94 % of the titles' facts": after["fact_rate"] >= 0.94,
    "at least 94 % where titles are cut down and the rest are attributes": after["cut_down"] >= 0.94,
    "at least 80 % of the brands never trained on": after["unseen_brand_rate"] >= 0.80,
    "of eight answers the truest: at least 97 % of the facts": best["fact_rate"] >= 0.97,
    "at most 3 % of these invent": best["inventions"] <= 0.03,
    "at most 4 % of those to short titles": best["inventions_short"] <= 0.04,
    "at least 95 % stop by themselves": after["stopped"] >= 0.95,
    "near 0 % of the facts before": before["fact_rate"] <= 0.05,
}
for promise, kept in promises.items():
    print("kept  " if kept else "BROKEN", promise)
sys.exit(not all(promises.values()))
