"""Snapshots in an object store: a real S3 server, and what goes wrong with one."""

import boto3
import pytest
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

from tests.builders import phema, run, write_run

pytestmark = pytest.mark.slow

KNOWN = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


@pytest.fixture(scope="module")
def server():
    """The URL of a server with an empty bucket."""
    started = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",  # noqa: S106 - of the server above
    )
    client.create_bucket(Bucket="bucket")
    client.close()
    yield url
    started.stop()


@pytest.fixture
def store(server, tmp_path, monkeypatch):
    """A directory of snapshots, its copy in the bucket, and the variables of who may read it."""
    write_run(tmp_path / "ckpts", shape=(300, 100))
    for name in KNOWN:
        monkeypatch.delenv(name, raising=False)
    variables = {
        "AWS_ENDPOINT_URL": server,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        "HOME": str(tmp_path),
    }
    client = boto3.client(
        "s3",
        endpoint_url=server,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",  # noqa: S106 - of the server above
    )
    for path in (tmp_path / "ckpts").iterdir():
        client.put_object(Bucket="bucket", Key=f"ckpts/{path.name}", Body=path.read_bytes())
    client.close()
    return variables


def call(*arguments, **environment):
    """Phema in a process of its own: fsspec keeps a thread and its sockets to the end."""
    return phema(*arguments, forked=True, verified=False, **environment)


def test_a_bucket_gives_the_bytes_of_local_files(store, tmp_path):
    """Inspected, synthesized, verified and compared as the directory that it is a copy of."""
    known = store | KNOWN
    shown = call("inspect", "s3://bucket/ckpts", "--json", **known)
    local = phema("inspect", tmp_path / "ckpts", "--json").json["snapshots"]
    assert [s["name"] for s in shown.json["snapshots"]] == [s["name"] for s in local]
    far, near = (tmp_path / f"{name}.safetensors" for name in ("far", "near"))
    done = call("synthesize", "s3://bucket/ckpts", "-g", 7, "-o", far, **known)
    assert done.code == 0, done.err
    run("synthesize", tmp_path / "ckpts", "-g", 7, "-o", near)
    assert far.read_bytes() == near.read_bytes()
    assert call("verify", near, "s3://bucket/ckpts", "--full", **known).code == 0
    name = "ema-step0000100-gamma5.safetensors"
    same = call("diff", f"s3://bucket/ckpts/{name}", tmp_path / "ckpts" / name, **known)
    assert same.code == 0, same.err
    assert "3 tensors compared, 3 identical" in same.out


@pytest.mark.parametrize(
    ("path", "changed", "code", "said"),
    [
        ("s3://bucket/nothing", {}, 3, "no such file or directory"),
        ("s3://nobucket/ckpts", {}, 5, "does not exist"),
        ("s3://bucket/ckpts", dict.fromkeys(KNOWN, ""), 5, "credentials"),
        ("s3://bucket/ckpts", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, 5, "connect"),
    ],
    ids=["no file", "no bucket", "no credentials", "no server"],
)
@pytest.mark.parametrize("command", ["inspect", "synthesize", "diff"])
def test_what_goes_wrong_is_one_line(store, tmp_path, command, path, changed, code, said):
    """A line that says where and what, the right exit code, and no output."""
    out = tmp_path / "o.safetensors"
    more = {"synthesize": ("-g", 7, "-o", out), "diff": (path,)}.get(command, ())
    done = call(command, path, *more, **(store | KNOWN | changed))
    assert (done.code, done.err.count("\n")) == (code, 1), done.err
    assert done.err.startswith(f"phema: {path}: ")
    assert said in done.err
    assert not out.exists()
