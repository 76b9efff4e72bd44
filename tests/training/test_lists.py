"""Lists of public data sets, made from small folders in the published layout."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from m2d_training import make_list
from m2d_training.cli.main import main
from m2d_training.data.lists.make import DATASETS
from m2d_training.evaluation.labelled import read_labelled

from m2d_hub import ConfigError

LISTS = ("train_filtered.txt", "valid_filtered.txt", "test_filtered.txt")
SEGMENTS = (
    "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=2, num_segs=2\n# YTID, start_seconds, "
)
SEGMENTS += "end_seconds, positive_labels\n"


def write(folder, **files):
    """Write files by name: text, or a dictionary as JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def touch(folder, *names):
    write(folder, **dict.fromkeys(names, ""))


def esc50(folder):
    header = "filename,fold,target,category,esc10,src_file,take\n"
    rows = "1-100032-A-0.wav,1,0,dog,True,100032,A\n5-9032-A-0.wav,5,41,chainsaw,True,9032,A\n"
    write(folder, **{"meta/esc50.csv": header + rows})
    touch(folder, "audio/1-100032-A-0.wav", "audio/5-9032-A-0.wav")


def us8k(folder):
    header = "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
    rows = (
        "100032-3-0-0.wav,100032,0.0,0.317551,1,5,3,dog_bark\n100263-2-0-117.wav,1,58.5,62.5,1,10,2,siren\n"
    )
    write(folder, **{"metadata/UrbanSound8K.csv": header + rows})
    touch(folder, "audio/fold5/100032-3-0-0.wav", "audio/fold10/100263-2-0-117.wav")


def speech_commands(folder):
    touch(folder, "yes/a_nohash_0.wav", "yes/b_nohash_0.wav", "no/a_nohash_0.wav")
    touch(folder, "_background_noise_/pink_noise.wav", "README.md", "LICENSE")
    write(
        folder, **{"validation_list.txt": "yes/b_nohash_0.wav\n", "testing_list.txt": "no/a_nohash_0.wav\n"}
    )


def vc1(folder):
    clips = [
        "id10001/1zcIwhmdeo4/00001.wav",
        "id10001/9mQ11vBs1wc/00003.wav",
        "id10002/0_laIeN-Q44/00001.wav",
    ]
    touch(folder, *(f"wav/{clip}" for clip in clips))
    lines = (f"{part} {clip}\n" for part, clip in zip((1, 2, 3), clips, strict=True))
    write(folder, **{"iden_split.txt": "".join(lines)})


def nsynth(folder):
    notes = {"train": ["bass_synthetic_033-022-050"], "valid": ["keyboard_acoustic_004-060-025"]}
    for split, names in (notes | {"test": ["bass_electronic_018-022-100"]}).items():
        table = {}
        for name in names:
            instrument, pitch, velocity = name.rsplit("-", 2)
            note = {"pitch": int(pitch), "velocity": int(velocity), "note_str": name}
            table[name] = note | {"instrument_family_str": instrument.partition("_")[0]}
            touch(folder, f"nsynth-{split}/audio/{name}.wav")
        write(folder, **{f"nsynth-{split}/examples.json": table})


def gtzan(folder):
    clips = ["blues/blues.00029.wav", "blues/blues.00030.wav", "jazz/jazz.00001.wav"]
    touch(folder, *(clip.replace(".wav", ".au") for clip in clips), "jazz/jazz.00054.au")
    write(folder.parent, **{name: f"{clip}\n" for name, clip in zip(LISTS, clips, strict=True)})


def surge(folder):
    touch(folder, "Bells - Bell 1/21.ogg", "Bells - Bell 1/108.ogg", "Leads - Saw/21.ogg", "LICENSE")
    write(folder.parent, **{"split.csv": "tone,split\nBells - Bell 1,train\nLeads - Saw,test\n"})


def cremad(folder):
    touch(folder, "AudioWAV/1001_DFA_ANG_XX.wav", "AudioWAV/1002_IEO_HAP_LO.wav", "VideoDemographics.csv")
    write(
        folder.parent,
        **{"split.csv": "file_name,split\n1001_DFA_ANG_XX.wav,train\n1002_IEO_HAP_LO.wav,val\n"},
    )


def voxforge(folder):
    touch(
        folder,
        "de/anon-2008-dnh/wav/de1-01.wav",
        "de/anon-2008-dnh/etc/PROMPTS",
        "it/bob-2010-a/wav/it-1.wav",
    )
    write(folder.parent, **{"split.csv": "archive,split\nanon-2008-dnh,train\nbob-2010-a,test\n"})


def audioset(folder):
    def segments(*rows):
        return SEGMENTS + "".join(rows)

    dog = '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n'
    gone = '-0RWZT-miFs, 420.000, 430.000, "/m/03v3yw"\n'
    music = 'Y1234567890, 0.000, 10.000, "/m/04rlf"\n'
    write(
        folder,
        **{
            "balanced_train_segments.csv": segments(dog, gone),
            "unbalanced_train_segments.csv": segments(music),
            "eval_segments.csv": segments('_abcdefghij, 1.000, 11.000, "/m/09x0r"\n'),
        },
    )
    touch(folder, "train/Y--PJHxphWEs.flac", "train/Y1234567890.wav", "eval/_abcdefghij_1.000.wav")


def fsd50k(folder):
    dev = 'fname,labels,mids,split\n64760,"Electric_guitar,Guitar","/m/02sgy,/m/0342h",train\n'
    write(
        folder,
        **{
            "FSD50K.ground_truth/dev.csv": dev + "16399,Walk,/m/07pbtc8,val\n",
            "FSD50K.ground_truth/eval.csv": "fname,labels,mids\n37199,Guitar,/m/0342h\n",
        },
    )
    touch(folder, "FSD50K.dev_audio/64760.wav", "FSD50K.dev_audio/16399.wav", "FSD50K.eval_audio/37199.wav")


def icbhi2017(folder):
    cycles = {
        "101_1b1_Al_sc_Meditron": "0.036\t0.579\t0\t0\n0.579\t2.45\t1\t0\n",
        "160_1b2_Al_mc_AKGC417L": "1.1\t2.2\t0\t1\n",
        "226_1b1_Pl_sc_LittC2SE": "0\t1.5\t1\t1\n",
    }
    for name, text in cycles.items():
        touch(folder, f"{name}.wav")
        write(folder, **{f"{name}.txt": text})
    touch(folder, "filename_format.txt")
    names = ["101_1b1_Al_sc_Meditron\ttrain", "160_1b2_Al_mc_AKGC417L\ttest", "226_1b1_Pl_sc_Meditron\ttrain"]
    write(folder, **{"ICBHI_challenge_train_test.txt": "\n".join(names) + "\n"})


def sprsound(folder, year="", subfolders=True):
    def record(*events):
        keys = ("start", "end", "type")
        return {
            "record_annotation": "Normal",
            "event_annotation": [dict(zip(keys, event, strict=True)) for event in events],
        }

    inter, intra = ("inter_test_json/", "intra_test_json/") if subfolders else ("", "")
    records = {
        f"train{year}_json/65101170_0.4_1_p1_3246": record(
            ("2499", "4277", "Normal"), ("5182", "7542", "Rhonchi")
        ),
        f"train{year}_json/65101171_0.4_1_p1_3247": record(),
        f"test{year}_json/{inter}40890405_3.3_0_p3_3655": record(("5778", "7419", "Wheeze+Crackle")),
        f"test{year}_json/{intra}65101170_0.4_1_p2_9": record(("100", "900", "Normal")),
    }
    for name, content in records.items():
        write(folder, **{f"{name}.json": content})
        split, stem = name.partition("_")[0], name.rpartition("/")[2]
        touch(folder, f"{split}_wav/{stem}.wav")


def librispeech(folder):
    touch(
        folder, "train-clean-100/103/1240/103-1240-0000.flac", "train-clean-100/103/1240/103-1240.trans.txt"
    )
    touch(folder, "train-other-500/20/205/20-205-0000.flac", "dev-clean/84/121123/84-121123-0000.flac")


def imagenet(folder):
    touch(folder, "train/n01440764/n01440764_18.JPEG", "train/n01443537/n01443537_2.JPEG")
    touch(folder, "val/n01440764/ILSVRC2012_val_00000293.JPEG", "val/n01443537/ILSVRC2012_val_00000236.JPEG")
    touch(folder, "test/ILSVRC2012_test_00000001.JPEG")


def imagenet_of_kaggle(folder):
    imagenet(folder / "ILSVRC/Data/CLS-LOC")
    val = folder / "ILSVRC/Data/CLS-LOC/val"
    for file in sorted(val.glob("*/*")):
        file.rename(val / file.name)
        file.parent.rmdir()
    rows = "ILSVRC2012_val_00000236,n01443537 3 142 208 466\n"
    rows += "ILSVRC2012_val_00000293,n01440764 1 2 3 4 n01440764 1 2 3 4\n"
    write(folder, **{"LOC_val_solution.csv": "ImageId,PredictionString\n" + rows})


def evar(folder):
    table = "file_name,label,split\na/1.wav,yes,train\na/2.wav,no,valid\nb/3.wav,yes,test\n"
    write(folder.parent, **{"task.csv": table})
    touch(folder, "a/1.wav", "a/2.wav", "b/3.wav")


SPLIT_CSV = {"split_files": ["split.csv"]}
# Cases, each with the rows that are expected: file, label, split, start_s, end_s.
ROWS = """\
esc50
audio/1-100032-A-0.wav,dog,1
audio/5-9032-A-0.wav,chainsaw,5

us8k
audio/fold5/100032-3-0-0.wav,dog_bark,5
audio/fold10/100263-2-0-117.wav,siren,10

spcv1
no/a_nohash_0.wav,no,test
yes/a_nohash_0.wav,yes,train
yes/b_nohash_0.wav,yes,valid

vc1
wav/id10001/1zcIwhmdeo4/00001.wav,id10001,train
wav/id10001/9mQ11vBs1wc/00003.wav,id10001,valid
wav/id10002/0_laIeN-Q44/00001.wav,id10002,test

nsynth
nsynth-train/audio/bass_synthetic_033-022-050.wav,bass,train
nsynth-valid/audio/keyboard_acoustic_004-060-025.wav,keyboard,valid
nsynth-test/audio/bass_electronic_018-022-100.wav,bass,test

nsynth pitch
nsynth-train/audio/bass_synthetic_033-022-050.wav,22,train
nsynth-valid/audio/keyboard_acoustic_004-060-025.wav,60,valid
nsynth-test/audio/bass_electronic_018-022-100.wav,22,test

gtzan
blues/blues.00029.au,blues,train
blues/blues.00030.au,blues,valid
jazz/jazz.00001.au,jazz,test

surge
Bells - Bell 1/108.ogg,108,train
Bells - Bell 1/21.ogg,21,train
Leads - Saw/21.ogg,21,test

cremad
AudioWAV/1001_DFA_ANG_XX.wav,anger,train
AudioWAV/1002_IEO_HAP_LO.wav,happiness,valid

voxforge
de/anon-2008-dnh/wav/de1-01.wav,de,train
it/bob-2010-a/wav/it-1.wav,it,test

audioset
train/Y--PJHxphWEs.flac,Speech;Gush,train
train/Y1234567890.wav,Music,train
eval/_abcdefghij_1.000.wav,Speech,test

audioset pretrain
train/Y--PJHxphWEs.flac,Speech;Gush
train/Y1234567890.wav,Music

as20k
train/Y--PJHxphWEs.flac,Speech;Gush,train
eval/_abcdefghij_1.000.wav,Speech,test

fsd50k
FSD50K.dev_audio/64760.wav,Electric_guitar;Guitar,train
FSD50K.dev_audio/16399.wav,Walk,valid
FSD50K.eval_audio/37199.wav,Guitar,test

icbhi2017
101_1b1_Al_sc_Meditron.wav,normal,train,0.036,0.579
101_1b1_Al_sc_Meditron.wav,crackle,train,0.579,2.45
160_1b2_Al_mc_AKGC417L.wav,wheeze,test,1.1,2.2
226_1b1_Pl_sc_LittC2SE.wav,both,train,0.0,1.5

icbhi2017 pretrain
101_1b1_Al_sc_Meditron.wav
226_1b1_Pl_sc_LittC2SE.wav

sprsound
train_wav/65101170_0.4_1_p1_3246.wav,Normal,train,2.499,4.277
train_wav/65101170_0.4_1_p1_3246.wav,Rhonchi,train,5.182,7.542
test_wav/40890405_3.3_0_p3_3655.wav,Wheeze+Crackle,test,5.778,7.419

sprsound intra-binary
train_wav/65101170_0.4_1_p1_3246.wav,Normal,train,2.499,4.277
train_wav/65101170_0.4_1_p1_3246.wav,Adventitious,train,5.182,7.542
test_wav/65101170_0.4_1_p2_9.wav,Normal,test,0.1,0.9

sprsound pretrain
train_wav/65101170_0.4_1_p1_3246.wav,2.499,4.277
train_wav/65101170_0.4_1_p1_3246.wav,5.182,7.542

librispeech
train-clean-100/103/1240/103-1240-0000.flac
train-other-500/20/205/20-205-0000.flac

imagenet
train/n01440764/n01440764_18.JPEG,n01440764,train
train/n01443537/n01443537_2.JPEG,n01443537,train
val/n01440764/ILSVRC2012_val_00000293.JPEG,n01440764,test
val/n01443537/ILSVRC2012_val_00000236.JPEG,n01443537,test

imagenet of Kaggle
ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_18.JPEG,n01440764,train
ILSVRC/Data/CLS-LOC/train/n01443537/n01443537_2.JPEG,n01443537,train
ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000236.JPEG,n01443537,test
ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000293.JPEG,n01440764,test

evar
a/1.wav,yes,train
a/2.wav,no,valid
b/3.wav,yes,test
"""
OPTIONS = {
    "nsynth pitch": {"variant": "pitch"},
    "gtzan": {"split_files": LISTS},
    "surge": SPLIT_CSV,
    "cremad": SPLIT_CSV,
    "voxforge": SPLIT_CSV,
    "audioset pretrain": {"variant": "pretrain"},
    "icbhi2017 pretrain": {"variant": "pretrain"},
    "sprsound intra-binary": {"variant": "intra-binary"},
    "sprsound pretrain": {"variant": "pretrain"},
    "evar": {"audio": "data"},
}
LAYOUTS = {
    "spcv1": speech_commands,
    "as20k": audioset,
    "imagenet of Kaggle": imagenet_of_kaggle,
}
CASES = {}
for name, *rows in (block.splitlines() for block in ROWS.split("\n\n")):
    layout = LAYOUTS.get(name) or globals()[name.split()[0]]
    CASES[name] = (layout, OPTIONS.get(name, {}), [tuple(row.split(",")) for row in rows])
CASES["spcv2"] = CASES["spcv1"]
ALL_COLUMNS = ("file", "label", "split", "start_s", "end_s")
HEADERS = {cells: ALL_COLUMNS[:cells] for cells in (1, 2, 3, 5)}
HEADERS["sprsound pretrain"] = ("file", "start_s", "end_s")


def made(tmp_path, case, out="list.csv"):
    """Write a case's folder ``tmp_path/data`` and make its list."""
    layout, options, _ = CASES[case]
    layout(tmp_path / "data")
    return relist(tmp_path, case, options, out)


def relist(tmp_path, case, options, out="list.csv"):
    name = case.split()[0]
    folder = tmp_path / ("task.csv" if name == "evar" else "data")
    options = dict(options)
    if "split_files" in options:
        options["split_files"] = [tmp_path / file for file in options["split_files"]]
    if "audio" in options:
        options["audio"] = tmp_path / options["audio"]
    return make_list(name, folder, tmp_path / out, **options)


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as lines:
        return [tuple(row) for row in csv.reader(lines)]


def test_every_data_set_has_a_case_and_a_row_in_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "lists.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1:3] for row in page.splitlines() if row.startswith("| `")]
    names = {name: variants for names, variants in rows for name in re.findall(r"`(\S+?)`", names)}
    assert {case.split()[0] for case in CASES} == set(DATASETS) == set(names)
    for name, dataset in DATASETS.items():
        assert re.findall(r"`(\S+?)`", names[name]) == list(dataset.variants) * (len(dataset.variants) > 1)


@pytest.mark.parametrize("case", CASES)
def test_lists_are_made_from_the_published_layout(tmp_path, case):
    result = made(tmp_path, case)
    header, *rows = rows_of(tmp_path / "list.csv")
    expected = CASES[case][2]
    assert header == HEADERS.get(case, HEADERS[len(expected[0])])
    assert rows == [(f"data/{row[0]}", *row[1:]) for row in expected]
    assert result.clips["all"] == len(expected)


# Data set: what is removed from its folder, and the message.
WRONG = {
    "esc50": ("meta", "has no meta/esc50.csv. ESC-50 is expected as published: meta/esc50.csv"),
    "vc1": (
        "iden_split.txt",
        "iden_split.txt does not exist. Pass as split_files (--split-file): iden_split.txt of https",
    ),
    "surge": ("*/*.ogg", "has no TONE/21.ogg"),
    "sprsound": ("train_json", "has no train_json. SPRSound is expected as published: train_json and"),
    "imagenet": (
        "train/n*",
        "has no training clips in folders of their classes; it must hold train/CLASS/FILE",
    ),
    "evar": ("../task.csv", "task.csv does not exist; give a CSV with the columns file_name, label"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_layouts_are_refused_with_the_expected_one(tmp_path, name):
    layout, options, _ = CASES[name]
    layout(tmp_path / "data")
    pattern, message = WRONG[name]
    for index, path in enumerate(sorted((tmp_path / "data").glob(pattern))):
        path.rename(tmp_path / f"moved-{index}")
    with pytest.raises(ConfigError) as error:
        relist(tmp_path, name, options)
    assert message in str(error.value)
    assert not (tmp_path / "list.csv").exists()


def test_missing_split_files_are_requested_with_their_source(tmp_path):
    surge(tmp_path / "data")
    message = r"has no split of its own\. Pass as split_files \(--split-file\): a CSV with the columns tone"
    with pytest.raises(ConfigError, match=message):
        relist(tmp_path, "surge", {})
    with pytest.raises(ConfigError, match=r"nowhere\.csv does not exist\. Pass as split_files"):
        relist(tmp_path, "surge", {"split_files": ["nowhere.csv"]})


@pytest.mark.parametrize("name", ["vc1", "icbhi2017"])
def test_a_published_split_can_be_elsewhere(tmp_path, name):
    expected = made(tmp_path, name)
    split = {"vc1": "iden_split.txt", "icbhi2017": "ICBHI_challenge_train_test.txt"}[name]
    (tmp_path / "data" / split).rename(tmp_path / "elsewhere.txt")
    again = relist(tmp_path, name, {"split_files": ["elsewhere.txt"]})
    assert again == expected


def test_a_split_of_other_clips_is_refused_with_both_names(tmp_path):
    voxforge(tmp_path / "data")
    write(tmp_path, **{"split.csv": "archive,split\nsomebody-else,train\n"})
    with pytest.raises(
        ConfigError, match=r"names none of the 2 clips .* 'somebody-else', the folder 'it/bob-2"
    ):
        relist(tmp_path, "voxforge", SPLIT_CSV)


def test_clips_without_a_split_are_skipped_with_a_warning(tmp_path, caplog):
    voxforge(tmp_path / "data")
    write(tmp_path, **{"split.csv": "archive,split\nbob-2010-a,test\n"})
    relist(tmp_path, "voxforge", SPLIT_CSV)
    assert rows_of(tmp_path / "list.csv")[1:] == [("data/it/bob-2010-a/wav/it-1.wav", "it", "test")]
    assert "1 of 2 clips have no split and are skipped" in caplog.text


def test_counts_are_compared_with_the_published_ones(tmp_path, caplog):
    result = made(tmp_path, "gtzan")
    assert result.differences == (
        "the list has 3 clips; 930 are published",
        "split train has 1 clips; 443 are published",
        "split valid has 1 clips; 197 are published",
        "split test has 1 clips; 290 are published",
        "the list has 2 labels; 10 are published",
    )
    assert "GTZAN: the list has 3 clips; 930 are published; split train has 1 clips" in caplog.text


def test_a_complete_data_set_differs_in_nothing(tmp_path, caplog):
    files = [f"audio/{index}.wav" for index in range(2_000)]
    touch(tmp_path / "data", *files)
    lines = [f"{index}.wav,{index // 400 + 1},class {index % 50}" for index in range(2_000)]
    write(tmp_path / "data", **{"meta/esc50.csv": "\n".join(["filename,fold,category", *lines])})
    result = relist(tmp_path, "esc50", {})
    assert result.differences == () and result.missing == 0 and result.labels == 50
    assert not caplog.records


# The paper's section IV-B, and each data set's own publication.


def test_missing_audio_is_counted_and_skipped(tmp_path, caplog):
    assert made(tmp_path, "audioset").missing == 1
    assert "AudioSet: 1 of 4 clips do not exist or are empty and are skipped, the first is" in caplog.text
    assert "-0RWZT-miFs.wav" in caplog.text


@pytest.mark.parametrize(("year", "subfolders"), [("2022", True), ("", False)])
def test_other_layouts_of_sprsound_give_the_same_tests(tmp_path, year, subfolders):
    sprsound(tmp_path / "data", year, subfolders)
    for test, patient in (("inter", "40890405"), ("intra", "65101170")):
        relist(tmp_path, "sprsound", {"variant": test})
        (tested,) = (row for row in rows_of(tmp_path / "list.csv") if row[2] == "test")
        assert f"/{patient}_" in tested[0]


def test_parts_that_end_before_they_start_are_skipped(tmp_path, caplog):
    icbhi2017(tmp_path / "data")
    write(tmp_path / "data", **{"160_1b2_Al_mc_AKGC417L.txt": "2.0\t1.0\t0\t0\n1.0\t2.0\t0\t0\n"})
    assert relist(tmp_path, "icbhi2017", {}).clips["test"] == 1
    assert "1 of 5 clips do not exist or are empty and are skipped" in caplog.text


BROKEN = {
    "icbhi2017": (
        "101_1b1_Al_sc_Meditron.txt",
        "0.1\t0.2\t2\t0\n",
        r"line 1 is '0\.1\\t0\.2\\t2\\t0', not start, end",
    ),
    "as20k": (
        "eval_segments.csv",
        'a, 1, 2, "/m/nothing"\n',
        "row 1 has '/m/nothing', none of AudioSet's 527 MIDs",
    ),
    "sprsound": (
        "train_json/65101171_0.4_1_p1_3247.json",
        "{}",
        r"cannot be read as annotations \(event_annotation with .*\) \('event_annotation' is missing\)",
    ),
    "cremad": ("AudioWAV/song.wav", "", "song.wav is not named SPEAKER_SENTENCE_EMOTION_LEVEL"),
    "evar": ("../task.csv", "file_name,label,split\na/1.wav,yes,later\n", "row 2 has the split 'later'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_tables_are_refused_with_the_line(tmp_path, name):
    layout, options, _ = CASES[name]
    layout(tmp_path / "data")
    file, content, message = BROKEN[name]
    write(tmp_path / "data", **{file: content})
    with pytest.raises(ConfigError, match=message):
        relist(tmp_path, name, options)


def test_evars_tables_may_have_folds_several_labels_and_other_formats(tmp_path):
    table = 'file_name,label,fold\na/1.wav,"/m/09x0r,/m/04rlf",1\na/2.wav,Walk,2\n'
    write(tmp_path, **{"task.csv": table})
    touch(tmp_path / "data", "a/1.flac", "a/2.wav")
    relist(tmp_path, "evar", {"audio": "data"})
    assert rows_of(tmp_path / "list.csv")[1:] == [
        ("data/a/1.flac", "Speech;Music", "1"),
        ("data/a/2.wav", "Walk", "2"),
    ]
    with pytest.raises(ConfigError, match="needs the folder of its clips; give it as audio"):
        relist(tmp_path, "evar", {})


@pytest.mark.parametrize(
    ("name", "options", "out", "message"),
    [
        ("esc5", {}, "list.csv", r"Unknown data set 'esc5'\. Available: esc50, "),
        (
            "nsynth",
            {"variant": "tone"},
            "list.csv",
            r"nsynth has no variant 'tone'\. Available: family, pitch, vel",
        ),
        ("esc50", SPLIT_CSV, "list.csv", "esc50 has its own split; omit split_files"),
        ("esc50", {"audio": "data"}, "list.csv", "audio is only for evar; for esc50 give the folder itself"),
        ("esc50", {}, "list.txt", r"out must be a \.csv file, got .*list\.txt"),
        ("esc50", {}, "data/meta/esc50.csv", r"esc50\.csv exists and is not a list .*; give another out"),
    ],
)
def test_invalid_arguments_are_refused(tmp_path, name, options, out, message):
    esc50(tmp_path / "data")
    with pytest.raises(ConfigError, match=message):
        relist(tmp_path, name, options, out)


def test_the_command_makes_a_list_that_evaluation_reads(tmp_path):
    speech_commands(tmp_path / "data")
    touch(tmp_path / "data", "no/c_nohash_0.wav")
    out = tmp_path / "list.csv"
    arguments = ["list", "spcv2", str(tmp_path / "data"), "--out", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0
    assert "lists 4 clips (test: 1, train: 2, valid: 1) with 2 labels; 0 are missing." in result.stdout
    (only,) = read_labelled(out).folds()
    assert (len(only.train), len(only.valid), len(only.test)) == (2, 1, 1)
    found = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert found["clips"]["all"] == 4 and found["path"] == str(out)
    assert "the list has 4 clips; 105,829 are published" in found["differences"]


def test_where_describes_every_data_set_or_one():
    result = CliRunner().invoke(main, ["list", "--where"])
    assert result.exit_code == 0
    for name, dataset in DATASETS.items():
        lines = f"{name}: {dataset.title}\n  from: {dataset.source}\n  licence: {dataset.licence}"
        assert lines in result.stdout
    one = CliRunner().invoke(main, ["list", "nsynth", "--where"]).stdout
    assert one.startswith("nsynth: NSynth") and "--variant pitch" in one and "ESC-50" not in one


def test_a_list_needs_a_folder():
    result = CliRunner().invoke(main, ["list", "esc50"])
    assert result.exit_code == 2 and "DATASET, FOLDER and --out are required" in result.stderr
