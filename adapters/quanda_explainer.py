"""Row scores of this project as an explainer of quanda, whose metrics then say how good they are.

Its environment: that of this project, and `pip install -r adapters/requirements.txt` beside it.
"""

import torch
from datasets import Dataset
from quanda.explainers import Explainer

from lib.attribution.per_example import RowData
from lib.attribution.scores import find_score, row_scores

INPUTS = ("input_ids", "token_type_ids", "attention_mask")


def as_rows(inputs: dict, labels) -> Dataset:
    "Batches of tokens (perhaps padded) and labels as rows, unpadded"
    kept = [[j for j, one in enumerate(row) if one] for row in inputs["attention_mask"]]
    columns = {
        name: [[int(row[j]) for j in places] for row, places in zip(inputs[name], kept, strict=True)]
        for name in INPUTS
        if name in inputs
    }
    return Dataset.from_dict(columns | {"label": [int(y) for y in labels]})


class SieveExplainer(Explainer):
    "Scores (queries, training rows) by any method of rows that works on tokens: trak, last_layer, ekfac, ..."

    accepted_tasks = ["text_classification"]

    def __init__(self, model, train_dataset, tokenizer, method="trak", options=None, seed=0, **more):
        super().__init__(model, train_dataset, more.pop("task", "text_classification"), **more)
        find_score(method, "row", options)
        self.tokenizer, self.method, self.options, self.seed = tokenizer, method, options or {}, seed
        self.rows = as_rows(
            {n: train_dataset[n] for n in train_dataset.column_names}, train_dataset["labels"]
        )

    def explain(self, test_data, targets) -> torch.Tensor:
        return self._scores(as_rows(test_data, targets)).T.contiguous()

    def self_influence(self, batch_size: int = 32) -> torch.Tensor:
        """Of every training row on itself, as ranks from the least on, equal for equal scores.

        quanda breaks ties by adding 1e-4 for each position before it sorts, in which small scores would drown."""
        own = self._scores(self.rows).diagonal()
        rank = own.unique(return_inverse=True)[1].double()
        return rank * (1 + 1e-4 * len(rank))

    def _scores(self, query: Dataset) -> torch.Tensor:
        longest = max(map(len, [*self.rows["input_ids"], *query["input_ids"]]))
        data = RowData(self.tokenizer, self.rows, query, max_length=longest, seed=self.seed)
        scores = row_scores(self.method, [self.model.eval()], data, **self.options)
        return torch.from_numpy(scores).to(self.device)
