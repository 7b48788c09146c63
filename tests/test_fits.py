"""Fits with one setting changed at a time: a row for each, measured on the same held-out episodes."""

import numpy as np

from studies import fits


def test_a_row_for_each_variant_and_what_is_there_is_not_fitted_again(
    pendulum, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(fits, "UPDATES", 30)
    monkeypatch.setattr(fits, "LONG", 90)
    monkeypatch.setitem(fits.VARIANTS, "long", ("longer", {"fit.max_updates": 90, "fit.min_updates": 90}))
    done = fits.run(str(pendulum), "t", 1, ["base", "long"], tmp_path, "eager")
    rows = {r["variant"]: r for r in fits.read(done)}
    assert {k: r["updates"] for k, r in rows.items()} == {"base": "30", "long": "90"}
    numbers = np.array([float(v) for r in rows.values() for k, v in r.items() if v and k != "variant"])
    assert np.isfinite(numbers).all()
    assert float(rows["long"]["holdout_mse"]) < float(rows["base"]["holdout_mse"])
    capsys.readouterr()
    fits.run(str(pendulum), "t", 1, ["base", "long"], tmp_path, "eager")
    assert capsys.readouterr().out == ""
    text = fits.table(tmp_path)
    assert text.startswith("**t**")
    assert text.count("\n| `") == 2


def test_every_variant_is_a_setting_of_the_model():
    for variant in fits.VARIANTS:
        config = fits.setting(variant, 3)
        assert config.seed == 3
        assert config.fit.min_updates == config.fit.max_updates
