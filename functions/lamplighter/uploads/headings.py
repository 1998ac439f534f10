"""Recognises a Moodle course log by its headings, in many languages and any order.

A heading is a string of the language of whoever exported the log. Source: Moodle's language packs, where the report
(`report_log`, `table_log`) takes them from: `time`, `fullnameuser`, `eventname`, `description` and `ip_address` of
`moodle.php`; `eventrelatedfullnameuser`, `eventcontext`, `eventcomponent` and `eventorigin` of `report_log.php`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lamplighter.kernel.errors import Permanent

COLUMNS: Final = (
    "Time",
    "User full name",
    "Affected user",
    "Event context",
    "Component",
    "Event name",
    "Description",
    "Origin",
    "IP address",
)
"""The columns of a course log (REQUIREMENTS D1), by their English headings."""

REQUIRED: Final = frozenset({"Time", "User full name", "Event context", "Component", "Event name"})
"""What makes it a course log. The others may lack (a log made anonymous has no address), and are then empty."""

SHOWN: Final = 12
"""Headings that a refusal repeats."""

_HEADINGS: Final = """
Time|User full name|Affected user|Event context|Component|Event name|Description|Origin|IP address
Hora|Nombre completo del usuario|Usuario afectado|Contexto del evento|Componente|Nombre evento|Descripción|Origen|Dirección IP
Hora|Nombre completo del usuario|Usuario afectado|Contexto del evento|Componente|Nombre del evento|Descripción|Origen|Dirección IP
Zeit|Vollständiger Name|Betroffene/r Nutzer/in|Ereigniskontext|Komponente|Ereignisname|Beschreibung|Herkunft|IP-Adresse
Heure|Nom complet de l'utilisateur|Utilisateur concerné|Contexte de l'événement|Composant|Nom de l'événement|Description|Origine|Adresse IP
Data e hora|Nome completo do utilizador|Utilizador afetado|Contexto do evento|Componente|Nome do evento|Descrição|Origem|Endereço IP
Hora|Nome completo|Usuário afetado|Contexto do Evento|Componente|Nome do evento|Descrição|Origem|endereço IP
Data/Ora|Nome completo dell'utente|Utente coinvolto|Contesto dell'evento|Componente|Evento|Descrizione|Origine|Indirizzo IP
Hora|Nom complet de l'usuari|Usuari afectat|Context de l'esdeveniment|Component|Nom de l'esdeveniment|Descripció|Origen|Adreça IP
Hora|Nome completo do usuario|Usuario afectado|Contexto da actividade|Compoñente|Nome da actividade|Descrición|Orixe|Enderezo IP
Tijd|Volledige naam van de gebruiker|Over gebruiker|Gebeurteniscontext|Component|Gebeurtenisnaam|Beschrijving|Oorsprong|IP-adres
Tid|Fullständigt namn|Berörd användare|Händelsekontext|Komponent|Händelsenamn|Beskrivning|Ursprung|IP-adress
Czas|Pełna nazwa|Dotyczy użytkownika|Kontekst zdarzenia|Składnik|Nazwa zdarzenia|Opis|Źródło|Adres IP
Oră|Numele complet al utilizatorului|Utilizator afectat|Contextul evenimentului|Componentă|Nume eveniment|Descriere|Origine|Adresă IP
Время|Полное имя пользователя|Затронутый пользователь|Контекст события|Компонент|Название события|Описание|Источник|IP-адрес
Час|Повне ім'я користувача|Стосується користувача|Контекст події|Компонент|Назва події|Опис|Джерело|IP-адреса
Ώρα|Πλήρες όνομα χρήστη|Χρήστης που επηρεάζεται|Πλαίσιο γεγονότος|Στοιχείο λογισμικού|Όνομα γεγονότος|Περιγραφή|Προέλευση|Διεύθυνση IP
Zaman|Kullanıcının tam adı|Etkilenen kullanıcı|Etkinlik bağlamı|Bileşen|Etkinlik adı|Açıklama|Köken|IP adresi
الوقت|الاسم كاملا|المستخدم المتأثر|سياق الحدث|المُكوِّن|اسم الحدث|الوصف|المصدر|عنوان IP
Ordua|Erabiltzailearen izen osoa|Inplikatutako erabiltzailea|Testuingurua|Osagaia|Ekitaldiaren izena|Deskribapena|Jatorria|IP helbidea
Laikas|Visas naudotojo vardas|Susijęs naudotojas|Įvykio kontekstas|Komponentas|Įvykio pavadinimas|Aprašas|Kilmė|IP adresas
時間|ユーザフルネーム|影響を受けるユーザ|イベントコンテクスト|コンポーネント|イベント名|説明|オリジン|IPアドレス
시|사용자 성명|영향받는 사용자|이벤트 문맥|구성요소|이벤트 이름|설명|오리진|IP 주소
时间|用户全名|受影响的用户|事件情境|组件|事件名称|描述|起源|IP 地址
"""  # noqa: E501, RUF001 - a language on a line: en es es_mx de fr pt pt_br it ca gl nl sv pl ro ru uk el tr ar eu lt ja ko zh_cn

_YEAR_FIRST: Final = frozenset({"ordua", "laikas", "時間", "시", "时间"})
"""Headings of the time in languages that write 24/03/12 (packs of eu, lt, ja, ko, zh_cn: `strftimedatetimeshort`)."""


class NotALog(Permanent):
    """The file is no Moodle course log; the message says what was found and what is missing."""


def normalised(heading: str) -> str:
    """A heading as it is compared: without case, outer marks and doubled spaces, one kind of apostrophe."""
    text = unicodedata.normalize("NFC", heading).replace("’", "'").replace("\ufeff", "")  # noqa: RUF001
    return " ".join(text.split()).strip(' :"').casefold()


_COLUMN_OF: Final = {
    normalised(heading): column
    for line in _HEADINGS.strip().splitlines()
    for column, heading in zip(COLUMNS, line.split("|"), strict=True)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Where a log's columns are."""

    width: int
    """Fields of a row."""
    positions: tuple[int | None, ...]
    """The field of each of `COLUMNS`, None where the log has no such column."""
    year_first: bool
    """Whether the language writes 24/03/12 for the 12th of March 2024."""


def recognised(headings: Sequence[str]) -> int:
    """How many of the columns a row of headings names."""
    return len({_COLUMN_OF[name] for heading in headings if (name := normalised(heading)) in _COLUMN_OF})


def read(headings: Sequence[str]) -> Header:
    """The columns of a log with these headings; others are passed over, of two alike the first counts.

    Raises:
        NotALog: a required column is missing.
    """
    found: dict[str, int] = {}
    for position, heading in enumerate(headings):
        column = _COLUMN_OF.get(normalised(heading))
        if column:
            found.setdefault(column, position)
    missing = [column for column in COLUMNS if column in REQUIRED and column not in found]
    if missing:
        shown = ", ".join(repr(heading[:60]) for heading in headings[:SHOWN])
        more = f" and {len(headings) - SHOWN} more" if len(headings) > SHOWN else ""
        raise NotALog(f"not a Moodle course log: no column is {' or '.join(missing)}; the columns are {shown}{more}.")
    return Header(
        width=len(headings),
        positions=tuple(found.get(column) for column in COLUMNS),
        year_first=normalised(headings[found["Time"]]) in _YEAR_FIRST,
    )
