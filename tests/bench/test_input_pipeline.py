"""The benchmark of the input pipeline runs, and says which side is missing."""

import json

from benchmarks import input_pipeline


def test_the_sides_that_are_there_are_compared(tmp_path, capsys):
    tiny = "--sizes 40x48 --pictures 8 --image_size 32 --batch 4 --batches 1 --turns 1".split()
    input_pipeline.main([*tiny, "--work", str(tmp_path), "--peers", str(tmp_path / "python")])
    out = capsys.readouterr().out
    assert out.count("not there: make setup-peers") == len(input_pipeline.PEERS)
    found = json.loads(out.splitlines()[-1])["results"]["40x48"]
    assert found["albumentations"] is None
    ours, limit = found["this pipeline"], found["limit: decode, patch, resize in TensorFlow"]
    assert min(ours["images_per_second"], limit["images_per_second"]) > 0
