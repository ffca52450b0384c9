"""The corpora and word lists of the bias data, sorted."""

from lib.data.gender import corpus, select_sentences, word_lists

CORPORA = ["bias/gap/gap-*.tsv", "bias/ewt/*.txt", "bias/winogender/all_sentences.tsv"]


def test_sentences_of_the_real_corpora(real_data, monkeypatch):
    monkeypatch.setenv("SIEVE_DATA", str(real_data("bias").parent))
    lists, sentences = word_lists(), corpus(CORPORA)
    found = {kind: len(rows) for kind, rows in select_sentences(sentences, lists).items()}
    print(len(sentences), found)
    assert {k: len(v) for k, v in lists.items()} == {"male": 207, "female": 202, "stereotype": 168}
    assert (
        len(sentences) == 17768
    )  # as the data's own README counts; its classes, by an approximate pattern: 4,880, 3,777, 654
    assert found == {"male": 4879, "female": 3778, "stereotype": 654}
