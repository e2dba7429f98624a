"""Twenty lines of scikit-learn: logistic regression on the network's pooled features.

    python bench/sklearn_fit.py JOB.json ANSWER.json

Features are standardised; the strength of L2 is one of 13 over the range that scikit-learn itself
tries by default (1e-4 to 1e4), by log loss over five stratified folds.
"""

import networks
import numpy as np
from pooled import features
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

if __name__ == "__main__":
    read, device = networks.job()
    _, labels, table = features(read, device, "train")
    paths, truth, unseen = features(read, device, "val")
    regression = LogisticRegressionCV(
        Cs=np.logspace(-4, 4, 13),
        cv=StratifiedKFold(5, shuffle=True, random_state=read["seed"]),
        scoring="neg_log_loss",
        max_iter=5000,
    )
    model = make_pipeline(StandardScaler(), regression).fit(table, labels)
    networks.answer(paths, truth, model.predict_proba(unseen))
