"""The package index that pip is configured for: where a package's file lies there, asked with pypi-simple."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import url2pathname

import requests
from pypi_simple import (
    PYPI_SIMPLE_ENDPOINT,
    NoSuchProjectError,
    PyPISimple,
    UnsupportedContentTypeError,
    UnsupportedRepoVersionError,
)
from requests.adapters import BaseAdapter
from requests.auth import AuthBase, HTTPBasicAuth

from sam_inspect.errors import FetchError
from sam_inspect.weights.download import CONNECT_SECONDS, READ_SECONDS, reason_of
from sam_inspect.weights.known import Package

SECTIONS = ("global", "download", ":env:")  # pip's own order: what comes later wins


@dataclass(frozen=True, slots=True)
class PipSettings:
    """What pip would use to download.

    Attributes:
        index_urls: simple indexes, in order; none with `no-index`.
        find_links: folders that may hold the file itself.
        trusted_hosts: `host` or `host:port` whose certificate is not checked.
        cert: a bundle of certificate authorities; None for the usual ones.
        client_cert: a client certificate in PEM; None for none.
        proxy: for all requests; None for the environment's.
    """

    index_urls: tuple[str, ...]
    find_links: tuple[Path, ...]
    trusted_hosts: tuple[str, ...]
    cert: str | None
    client_cert: str | None
    proxy: str | None


def pip_settings() -> PipSettings:
    """Asks pip itself, so that its files, its environment variables and their order are pip's business."""
    options = _pip_options()
    index_urls = [options.get("index-url", PYPI_SIMPLE_ENDPOINT), *options.get("extra-index-url", "").split()]
    if options.get("no-index", "").lower() in {"1", "true", "yes", "on"}:
        index_urls = []
    links = (_local(link) for link in options.get("find-links", "").split())
    return PipSettings(
        tuple(index_urls),
        tuple(folder for folder in links if folder),
        tuple(options.get("trusted-host", "").split()),
        options.get("cert"),
        options.get("client-cert"),
        options.get("proxy"),
    )


def _pip_options() -> dict[str, str]:
    """Option -> value as `pip download` would see it; from the environment alone where pip is not installed."""
    line = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    answer = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    if answer.returncode != 0:
        given = {key.lower().replace("_", "-"): value for key, value in os.environ.items() if value}
        return {key[4:]: value for key, value in given.items() if key.startswith("pip-")}
    found: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for row in answer.stdout.splitlines():
        place, _, value = row.partition("=")
        section, _, key = place.partition(".")
        if section in found and (text := str(ast.literal_eval(value)).strip()):
            found[section][key.replace("_", "-")] = text
    return {key: value for section in SECTIONS for key, value in found[section].items()}


def _local(link: str) -> Path | None:
    """A folder named by path or file URL; None for a page, which an index replaces."""
    parts = urlsplit(link)
    if parts.scheme == "file":
        return Path(url2pathname(unquote(parts.path)))
    return None if parts.scheme in {"http", "https"} else Path(link).expanduser()


class Session(requests.Session):
    """Requests as pip would make them: its certificates, trusted hosts, proxy, passwords in URLs, and file URLs."""

    def __init__(self, settings: PipSettings) -> None:
        super().__init__()
        self._settings = settings
        passwords = _Passwords(settings.index_urls)
        if passwords.by_host:
            self.auth = passwords  # else requests looks into .netrc, as pip does
        self.mount("file://", _Files())

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """See requests. Raises InvalidURL: a server sends to a file of this machine."""
        target = super().get_redirect_target(resp)
        if target and urlsplit(target).scheme == "file":
            raise requests.exceptions.InvalidURL("it redirects to a file of this machine")
        return target

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        """See requests: what holds for one URL, the environment considered."""
        merged = super().merge_environment_settings(url, proxies, stream, verify, cert)
        parts, settings = urlsplit(str(url)), self._settings
        if {parts.hostname, host_of(parts)} & set(settings.trusted_hosts):
            merged["verify"] = False
        elif settings.cert:
            merged["verify"] = settings.cert
        if settings.proxy:
            merged["proxies"] = {"http": settings.proxy, "https": settings.proxy}
        if settings.client_cert:
            merged["cert"] = settings.client_cert
        return merged


class _Passwords(AuthBase):
    """User and password of an index's URL, for all files of its host, as pip does; for no other host."""

    def __init__(self, index_urls: Iterable[str]) -> None:
        with_user = (parts for parts in map(urlsplit, index_urls) if parts.username)
        self.by_host = {
            host_of(parts): (unquote(parts.username or ""), unquote(parts.password or "")) for parts in with_user
        }

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        known = self.by_host.get(host_of(urlsplit(str(request.url))))
        return HTTPBasicAuth(*known)(request) if known else request


def host_of(parts: SplitResult) -> str:
    """`host` or `host:port` of a URL, without user and password."""
    return parts.netloc.rpartition("@")[2]


class _Files(BaseAdapter):
    """file:// URLs, which pip takes as indexes too: a folder answers with its index.html."""

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        path = Path(url2pathname(unquote(urlsplit(str(request.url)).path)))
        path = path / "index.html" if path.is_dir() else path
        response = requests.Response()
        response.request, response.url = request, str(request.url)
        response.status_code = 200 if path.is_file() else 404
        if path.is_file():
            response.raw = path.open("rb")
            kind = "text/html" if path.name == "index.html" else "application/octet-stream"
            response.headers.update({"Content-Type": kind, "Content-Length": str(path.stat().st_size)})
        return response

    def close(self) -> None:
        """Nothing is kept open."""


def package_urls(session: Session, settings: PipSettings, package: Package) -> list[str]:
    """Where the package's very file can be had: pip's folders, then its indexes in order.

    Raises:
        FetchError: no index has it, or none answers; the message is about each.
    """
    places = [folder / package.filename for folder in settings.find_links]
    urls = [place.absolute().as_uri() for place in places if place.is_file()]
    reasons = []
    for index_url in settings.index_urls:
        offered, reason = _offered(session, index_url, package)
        urls += offered
        reasons.append(f"{urlsplit(index_url).hostname or 'a local index'} {reason}")
    if not urls:
        raise FetchError(", ".join(reasons) or "pip has no index here, and none of its folders holds the file")
    return urls


def _offered(session: Session, index_url: str, package: Package) -> tuple[list[str], str]:
    """What one index offers of the file, and why not where it offers nothing."""
    try:
        index = PyPISimple(index_url, session=session)
        page = index.get_project_page(package.project, timeout=(CONNECT_SECONDS, READ_SECONDS))
    except NoSuchProjectError:
        return [], f"has no {package.project}"
    except requests.RequestException as error:
        return [], reason_of(error)
    except (UnsupportedContentTypeError, UnsupportedRepoVersionError, ValueError):
        return [], "did not answer as a package index"
    found = [offered for offered in page.packages if offered.filename == package.filename]
    same = [offered.url for offered in found if offered.digests.get("sha256", package.sha256) == package.sha256]
    return same, "offers other bytes under that name" if found else f"has no {package.filename}"
