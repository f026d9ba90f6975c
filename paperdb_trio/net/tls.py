"""TLS: the certificate, the handshake, and a stream that encrypts in memory.

Law: OpenSSL never sees the socket. It works on two memory buffers, so that a push is one encryption and one
immediate write, and all of its records leave in order. All connections share the buffer for records: what a
call of OpenSSL puts there is taken out right behind it, in the same step.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from paperdb_trio.config import Settings
from paperdb_trio.errors import StartupError
from paperdb_trio.files import EXIT_UNWRITABLE, partial, whose
from paperdb_trio.loop.turn import OnePerTurn
from paperdb_trio.net.stream import ByteStream

if TYPE_CHECKING:
    from cryptography import x509

EXIT_CERTIFICATE: Final = 8
SELF_SIGNED: Final = ("tls-self-signed.crt", "tls-self-signed.key")
SELF_SIGNED_DAYS: Final = 365
RECORDS_BYTES: Final = 65_536
"""Plain text per encryption; an interrupted write loses, and holds in memory, no more than this."""
RECORD_BYTES: Final = 16_640
"""Bytes per read, about the size of the largest record."""
SPARSE_BYTES: Final = 2048
"""Bytes per read while most of the input is not data."""
_HANDSHAKE_RECORD: Final = 22  # RFC 8446, section 5.1

PLAIN_RESPONSE: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
    b'{"error":"This port speaks TLS: use https:// or wss://","code":"TLS_REQUIRED"}'
)


class TlsError(Exception):
    """The peer's handshake failed; this concerns only that peer."""


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """The TLS context for new connections, from the settings; None without TLS.

    Raises `StartupError` for files that cannot be read, or that are not a certificate and its key.
    """
    certificate, key = settings.tls_cert, settings.tls_key
    if settings.tls_self_signed:
        if certificate or key:
            raise StartupError("Give --tls-cert and --tls-key, or --tls-self-signed, but not both", 2)
        try:
            certificate, key = map(str, self_signed(Path(settings.data), settings.host))
        except OSError as error:
            raise StartupError(
                f"Cannot create a certificate in {settings.data}: {error.strerror}"
                f"{whose(error, *(Path(settings.data, name) for name in SELF_SIGNED), Path(settings.data))}",
                EXIT_UNWRITABLE,
            ) from None
    if not certificate and not key:
        return None
    if not certificate or not key:
        raise StartupError("TLS needs both --tls-cert and --tls-key", 2)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 1  # a returning client needs only one
    context.set_alpn_protocols(["h2", "http/1.1"])

    def no_password() -> str:  # OpenSSL would ask for it on the terminal
        raise StartupError(f"The TLS key {key} is encrypted; expected an unencrypted one", EXIT_CERTIFICATE)

    try:
        context.load_cert_chain(certificate, key, no_password)
    except ssl.SSLError as error:
        reason = _reason(error).lower().replace("_", " ")
        raise StartupError(
            f"Cannot use the TLS certificate {certificate} with the key {key}: {reason}", EXIT_CERTIFICATE
        ) from None
    except OSError as error:
        unreadable = next((path for path in (certificate, key) if not os.access(path, os.R_OK)), certificate)
        raise StartupError(f"Cannot read {unreadable}: {error.strerror}", EXIT_CERTIFICATE) from None
    return context


def _reason(error: Any) -> str:
    """Of an `SSLError`. It may be None, which typeshed does not know, and compiled code believes typeshed."""
    return error.reason or str(error)


def self_signed(data: Path, host: str) -> tuple[Path, Path]:
    """A self-signed certificate in the data directory, for trying out; replaced when it has expired."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    certificate, key = (data / name for name in SELF_SIGNED)
    now = datetime.datetime.now(datetime.UTC)
    names = {"localhost", socket.gethostname(), "127.0.0.1", "::1", host} - {"0.0.0.0", "::", ""}
    if certificate.exists() and key.exists():
        try:
            old = x509.load_pem_x509_certificate(certificate.read_bytes())
            fits = old.public_key() == serialization.load_pem_private_key(key.read_bytes(), None).public_key()
        except ValueError:
            fits = False  # a malformed file
        if fits and old.not_valid_after_utc > now:
            known = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            if {str(name.value) for name in known} >= names:
                return certificate, key
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "PaperDB, self-signed")])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=SELF_SIGNED_DAYS))
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in sorted(names)]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(private, hashes.SHA256())
    )
    private_bytes = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for path, content in ((key, private_bytes), (certificate, made.public_bytes(serialization.Encoding.PEM))):
        with partial(path) as temporary:
            temporary.write_bytes(content)
    return certificate, key


def _alternative(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class TlsStream(ByteStream):
    """A `ByteStream` whose bytes on the wire are TLS records. `handshake()` comes first.

    `records` is the buffer that all connections share. One for each would keep the size of its largest write,
    and be in no cache of the CPU: 50 KB of events took a fifth longer.
    """

    __slots__ = ("_incoming", "_pending", "_plain", "_records", "_sparse", "_tls", "_turns", "_wire")

    def __init__(
        self,
        raw: socket.socket,
        peer: str,
        context: ssl.SSLContext,
        records: ssl.MemoryBIO,
        turns: OnePerTurn,
    ) -> None:
        super().__init__(raw, peer)
        self._turns = turns
        self._wire = self._plain = 0  # bytes that came since the last look, and what was in them
        self._sparse = True
        self._incoming, self._records = ssl.MemoryBIO(), records
        self._pending = b""  # TLS's own records, such as the response to a key update
        self._tls = context.wrap_bio(self._incoming, records, server_side=True)

    async def handshake(self, turns: OnePerTurn) -> None:
        """Shake hands. `turns` allows one step (up to a millisecond of arithmetic) of one connection per loop
        iteration, so that a storm of handshakes holds up no other client.

        Raises `TlsError`, BrokenResourceError and ClosedResourceError.
        """
        data = super().take_now(RECORDS_BYTES) or await self._receive(RECORDS_BYTES)
        if data and data[0] != _HANDSHAKE_RECORD:
            if data[:1].isalpha():
                await self._write_raw(PLAIN_RESPONSE)
            raise TlsError("the first bytes are not TLS")
        while data:
            self._incoming.write(data)
            await turns.next()
            try:
                self._tls.do_handshake()
                done, failure = True, None
            except ssl.SSLWantReadError:
                done, failure = False, None
            except ssl.SSLError as error:
                done, failure = False, error
            finally:
                records = self._records.read()
            if records:
                await self._write_raw(records)
            if failure is not None:
                raise TlsError(_reason(failure)) from None
            if done:
                return
            data = await self._receive(RECORDS_BYTES)
        raise TlsError("the peer left during the handshake")

    # --- reading ---------------------------------------------------------------------------------

    def take_now(self, max_bytes: int) -> bytes:
        return b""  # not worth it beside the handshake

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._unread:
            return await super().receive_some(max_bytes)
        waited = False
        while True:
            if self._closed:
                raise trio.ClosedResourceError
            data = self._decrypt(max_bytes or RECORDS_BYTES)
            if self._pending:
                self._say_pending()
            self._look(0 if data is None else len(data))
            if data is not None:
                if not waited:
                    await trio.lowlevel.checkpoint()
                return data
            waited = True
            if self._sparse:
                await self._turns.next()
            received = await self._receive(SPARSE_BYTES if self._sparse else RECORD_BYTES)
            self._wire += len(received)
            if not received:
                return b""  # OpenSSL is not told, because it would then refuse to encrypt our last response
            self._incoming.write(received)

    def _look(self, plain: int) -> None:
        """Update `_sparse`: the input is mostly key updates (27 µs for 27 bytes) or records of one byte.
        `turns` lets one such connection read a little per loop iteration."""
        self._plain += plain
        if self._wire >= SPARSE_BYTES and (self._plain or self._sparse or self._wire >= RECORD_BYTES):
            self._sparse = self._plain * 2 < self._wire
            self._wire = self._plain = 0

    def _decrypt(self, max_bytes: int) -> bytes | None:
        """The decrypted input; empty at the end; None if no record is complete yet."""
        parts: list[bytes] = []
        try:
            while max_bytes > 0 and (data := self._tls.read(max_bytes)):
                parts.append(data)
                max_bytes -= len(data)
        except ssl.SSLWantReadError:
            return b"".join(parts) if parts else None
        except ssl.SSLZeroReturnError:
            pass
        except ssl.SSLError as error:
            if not parts:
                raise trio.BrokenResourceError(_reason(error)) from None
        finally:
            self._pending += self._records.read()
        return b"".join(parts)

    def _say_pending(self) -> None:
        """Write TLS's own records if possible now; else they go with the next write.

        Raises BrokenResourceError if they grow too large: the peer keeps asking for new keys and reads nothing.
        """
        if len(self._pending) > RECORDS_BYTES:
            self._break()
            raise trio.BrokenResourceError("the peer does not read TLS's own records")
        if not self._blocked:
            records, self._pending = self._pending, b""
            self._push_raw(records)

    # --- writing ---------------------------------------------------------------------------------

    def push(self, data: bytes) -> int:
        """As without TLS, but also keeps data that the kernel does not accept: it is encrypted already."""
        if self._blocked:
            self._check()
            return -1
        return self._push_raw(self._encrypt(data))

    def writer(self) -> Callable[[bytes], int] | None:
        """As without TLS, but the caller need not `keep`, and 0 may also mean that TLS's own records wait."""
        return None if self._blocked else self._write_message

    def _write_message(self, data: bytes) -> int:
        """Takes all, and returns -1 if some waits for the next `send_all`; or takes nothing, and returns 0."""
        if self._blocked:
            return 0
        return -1 if self._push_raw(self._encrypt(data)) else len(data)

    def _encrypt(self, data: bytes | memoryview) -> bytes:
        """The records for `data`, after TLS's own pending records."""
        try:
            self._tls.write(data)
        except ssl.SSLError as error:  # the peer has broken the protocol
            self._break()
            raise trio.BrokenResourceError(_reason(error)) from None
        finally:
            records = self._records.read()
        if self._pending:
            records, self._pending = self._pending + records, b""
        return records

    def keep(self, tail: bytes | memoryview) -> None:
        super().keep(self._encrypt(tail))

    def _push_raw(self, records: bytes) -> int:
        left = self._write_now(records)
        if left < 0:
            self._keep(records)
            return len(records)
        return left

    async def _write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        written = 0
        try:
            while written < len(view):
                self._check()
                part = view[written : written + RECORDS_BYTES]
                await self._write_raw(self._encrypt(part))
                written += len(part)
        finally:
            if written < len(view):
                self._break()

    def _shutdown(self) -> None:
        if not self._busy and not self._tail and not self._broken:
            try:
                self._tls.unwrap()
            except ssl.SSLError:  # our goodbye is written; it would wait for the peer's
                pass
            try:
                os.write(self._fd, self._pending + self._records.read())
            except OSError:
                pass  # a goodbye that does not fit is not worth waiting for
        super()._shutdown()
