"""Folders as data: what is read, what is left out, and when the files have to be named."""

import os
import re
from pathlib import Path

import pytest
from fixtures.data_files import GOOD, dump_csv, dump_lines

from ptune.data.folders import check_apart, find_data_files
from ptune.data.records import read_records
from ptune.errors import DataError


def fill(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        if name.endswith("/"):
            (folder / name).mkdir()
        else:
            text = dump_csv(GOOD) if ".csv" in name else dump_lines(GOOD)
            (folder / name).write_text(text, encoding="utf-8")
    return folder


def find(*paths):
    notices = []
    return [path.name for path in find_data_files(paths, notices)], notices


def test_all_data_files_by_name(tmp_path):
    names = ["b.json", "a.csv", "c.jsonl.gz", "d.PARQUET", "e.tsv", "f.arrow", "g.ndjson.xz"]
    folder = fill(tmp_path / "data", *names, ".hidden.json", "._a.json")
    assert find(folder) == (sorted(names), [])


def test_folder_among_files(tmp_path):
    folder = fill(tmp_path / "data", "b.json", "a.csv")
    other = fill(tmp_path, "z.json") / "z.json"
    assert find(other, folder) == (["z.json", "a.csv", "b.json"], [])
    loaded = read_records([folder, other])
    assert [row["source"] for row in loaded.records] == [
        *(f"{folder / 'a.csv'}:{n}" for n in (2, 3)),
        *(f"{folder / 'b.json'}:{n}" for n in (1, 2)),
        *(f"{other}:{n}" for n in (1, 2)),
    ]


def test_other_files_are_named_once(tmp_path):
    names = ["README.md", "dataset_info.json", "license.txt", "sub/"]
    folder = fill(tmp_path / "data", "a.json", *names)
    notice = (
        f"of folder {folder} these are no data files and left out: "
        "README.md, dataset_info.json, license.txt, sub"
    )
    assert find(folder) == (["a.json"], [notice])
    assert read_records([folder]).notices == (notice,)
    fill(folder, *(f"{n}.md" for n in range(10)))
    assert find(folder)[1][0].endswith(": 0.md, 1.md, 2.md, 3.md, 4.md and 9 more")


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ([], "it is empty"),
        (["README.md", "train/", "dataset_dict.json"],
         "it holds README.md, dataset_dict.json, train"),
    ],
)  # fmt: skip
def test_folder_without_data(tmp_path, names, what):
    folder = fill(tmp_path / "data", *names)
    expected = f"no data file in folder {folder} ({what}); name a file, or another folder"
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        read_records([folder])


@pytest.mark.parametrize("name", ["more.xlsx", "more.zip", "more.tar.gz", "more.tgz", "a.csv.zst"])
def test_data_that_cannot_be_read_is_not_left_out(tmp_path, name):
    folder = fill(tmp_path / "data", "a.json", name)
    expected = (
        f"{folder / name} may be part of the data in folder {folder}, but cannot be read; "
        "take it away, or name the files that you want"
    )
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        find(folder)


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["train.json", "dev.json"], "dev.json, train.json"),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000.parquet"],
         "test-00000.parquet, train-00000-of-00002.parquet"),
        (["my_train.csv", "my_valid.csv"], "my_train.csv, my_valid.csv"),
        (["trainset.json", "Validation.json"], "Validation.json, trainset.json"),
        (["all.json", "test.json"], "all.json, test.json"),
        (["dev.json", "test.json"], "dev.json, test.json"),
        (["训练集.json", "验证集.json"], "训练集.json, 验证集.json"),
        (["train.json", "eval1.json.gz"], "eval1.json.gz, train.json"),
    ],
)  # fmt: skip
def test_splits_are_not_mixed(tmp_path, names, shown):
    folder = fill(tmp_path / "data", *names)
    expected = (
        f"folder {folder} holds data of several splits ({shown}), which are not to be mixed; "
        "name the files that you want"
    )
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        find(folder)


@pytest.mark.parametrize(
    "names",
    [
        ["train-0.json", "train-1.json"],
        ["train.json", "more.json"],
        ["dev.json"],
        ["test1.json", "test2.json"],
        ["devices.json", "latest.json", "constraint.json", "valley.json", "medieval.json"],
    ],
)
def test_one_split_is_read(tmp_path, names):
    assert find(fill(tmp_path / "data", *names)) == (sorted(names), [])


def test_links(tmp_path):
    folder = fill(tmp_path / "data", "a.json")
    (folder / "b.json").symlink_to(fill(tmp_path, "b.json") / "b.json")
    (folder / "circle").symlink_to(folder)
    (folder / "gone.json").symlink_to("nowhere")
    names, notices = find(folder)
    assert names == ["a.json", "b.json", "gone.json"] and notices[0].endswith(": circle")
    with pytest.raises(DataError, match=r"gone\.json is a link to nowhere, which does not exist"):
        read_records([folder])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe_in_a_folder_is_not_waited_for(tmp_path):
    folder = fill(tmp_path / "data", "a.json")
    os.mkfifo(folder / "b.json")
    assert find(folder)[0] == ["a.json"]


def test_folder_without_rights(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    folder = fill(tmp_path / "data", "a.json")
    monkeypatch.setattr(type(folder), "iterdir", refuse)  # who runs the tests may have all rights
    with pytest.raises(
        DataError, match=r"^data folder .* cannot be read \(Permission denied\); check its rights$"
    ):
        find(folder)


class TestOneFileTwice:
    def test_among_the_files(self, tmp_path, monkeypatch):
        monkeypatch.chdir(fill(tmp_path, "a.json", "b.json"))
        file, link = Path("a.json"), Path("link.json")
        with pytest.raises(DataError, match=r"^data file a.json is given twice; leave one of them"):
            find(file, Path("b.json"), file)
        whole = re.escape(str(tmp_path / "a.json"))
        told = rf"^data file {whole} is given twice \(as a.json and as {whole}\); leave one of them"
        with pytest.raises(DataError, match=told):
            find(file, tmp_path / "a.json")
        link.symlink_to("a.json")
        with pytest.raises(DataError, match=r"^data file link.json is given twice \(as a.json and"):
            read_records([file, link])
        with pytest.raises(DataError, match=r"given twice \(as a.json and as .*/a.json\)"):
            find(file, tmp_path)
        with pytest.raises(DataError, match=r"absent.json does not exist"):
            read_records([Path("absent.json"), Path("absent.json")])

    def test_equal_contents_are_no_matter(self, tmp_path):
        assert find(fill(tmp_path, "a.json", "b.json")) == (["a.json", "b.json"], [])

    def test_in_training_and_development_data(self, tmp_path):
        folder = fill(tmp_path / "data", "a.json", "b.json")
        other = fill(tmp_path, "c.json") / "c.json"
        check_apart([folder], [other])
        check_apart([folder], [])
        told = r"^data file .*b.json is both training and development data; leave it out of one"
        with pytest.raises(DataError, match=told):
            check_apart([other, folder], [folder / "b.json"])
        with pytest.raises(
            DataError, match=r"development data \(as .*/a.json and as .*/\.\./data/a"
        ):
            check_apart([folder / "a.json"], [folder / ".." / "data"])
