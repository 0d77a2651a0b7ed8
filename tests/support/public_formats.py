"""Small files in the exact layouts of four public logs, written by us: what their readers must bring in.

Each takes a folder and leaves what its publisher would: events of one or more days, and a catalogue where there is one.
"""

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

DAY = "2015-06-02"
_START = datetime(2015, 6, 2, 1, tzinfo=UTC)


def _visits(users: int, each: int) -> list[tuple[int, int, datetime]]:
    """(user, item, time): walks in which the next item can be learnt, in the order of time."""
    chance = random.Random(0)
    found = []
    for user in range(users):
        item, moment = chance.randrange(20), _START + timedelta(minutes=chance.randrange(600))
        for _ in range(each):
            found.append((user, item, moment))
            item, moment = (item + 1) % 20, moment + timedelta(minutes=chance.randrange(1, 20))
    return sorted(found, key=lambda visit: visit[2])


def _milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def retailrocket(folder: Path, users: int = 40, each: int = 5) -> dict[str, int]:
    """events.csv, item_properties_part1.csv and category_tree.csv; counts of events by type."""
    lines, counts = ["timestamp,visitorid,event,itemid,transactionid"], {"click": 0, "conversion": 0}
    for number, (user, item, moment) in enumerate(_visits(users, each)):
        kind = "transaction" if number % 17 == 0 else "addtocart" if number % 5 == 0 else "view"
        order = str(number) if kind == "transaction" else ""
        lines.append(f"{_milliseconds(moment)},{user + 1000},{kind},{item + 5000},{order}")
        counts["conversion" if kind == "transaction" else "click"] += 1
    properties = ["timestamp,itemid,property,value"]
    for item in range(20):
        for week in (3, 1):
            at = _milliseconds(_START - timedelta(weeks=week))
            properties += [f"{at},{item + 5000},categoryid,{item % 4 + week * 100}"]
        properties += [f"{at},{item + 5000},790,n{item}.500", f"{at},{item + 5000},888,1152934 n{item}.000 521740"]
    folder.mkdir(parents=True)
    (folder / "events.csv").write_text("\n".join(lines) + "\n")
    (folder / "item_properties_part1.csv").write_text("\n".join(properties) + "\n")
    (folder / "category_tree.csv").write_text("categoryid,parentid\n1016,213\n809,169\n")
    return counts


def mind(folder: Path, users: int = 40, each: int = 5) -> dict[str, int]:
    """behaviors.tsv and news.tsv, which have no header."""
    lines, counts, before = [], {"impression": 0, "click": 0}, {}
    for number, (user, item, moment) in enumerate(_visits(users, each), start=1):
        shown = [f"N{(item + step * 3) % 20}-{int(step == 0)}" for step in range(4)]
        hour = moment.hour % 12 or 12
        time = f"{moment.month}/{moment.day}/{moment.year} {hour}:{moment:%M:%S %p}"
        lines.append(f"{number}\tU{user}\t{time}\t{' '.join(before.get(user, []))}\t{' '.join(shown)}")
        before.setdefault(user, []).append(f"N{item}")
        counts["impression"] += 4
        counts["click"] += 1
    entities = json.dumps([{"Label": 'Some "one"', "Type": "P"}])
    news = [
        f'N{item}\tnews\ttopic{item % 4}\tHeadline {item} says "much"\tAbstract of {item}\thttps://x/{item}\t{entities}\t[]'
        for item in range(20)
    ]
    folder.mkdir(parents=True)
    (folder / "behaviors.tsv").write_text("\n".join(lines) + "\n")
    (folder / "news.tsv").write_text("\n".join(news) + "\n")
    return counts


def kuairand(folder: Path, users: int = 40, each: int = 5) -> dict[str, int]:
    """log_standard_*.csv and video_features_basic_*.csv."""
    flags = ["is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view"]
    header = ["user_id", "video_id", "date", "hourmin", "time_ms", *flags, "play_time_ms", "duration_ms",
              "profile_stay_time", "comment_stay_time", "is_profile_enter", "is_rand", "tab"]  # fmt: skip
    lines, counts = [",".join(header)], {"impression": 0, "click": 0, "conversion": 0, "dislike": 0}
    for number, (user, item, moment) in enumerate(_visits(users, each)):
        click, long, hate = int(number % 2 == 0), int(number % 6 == 0), int(number % 31 == 1)
        shown = [user, item, f"{moment:%Y%m%d}", f"{moment:%H}00", _milliseconds(moment), click, 0, 0, 0, 0, hate, long]
        lines.append(",".join(map(str, [*shown, 5000, 9000, 0, 0, 0, 1, number % 3])))
        for kind, flag in (("impression", 1), ("click", click), ("conversion", long), ("dislike", hate)):
            counts[kind] += flag
    videos = ["video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,"
              "server_height,music_id,music_type,tag"]  # fmt: skip
    videos += [
        f'{item},{item % 5},NORMAL,2015-05-01,LongImport,1,9000.0,720,1280,{item},4.0,"{item % 4},7"'
        for item in range(20)
    ]
    folder.mkdir(parents=True)
    (folder / "log_standard_4_08_to_4_21_pure.csv").write_text("\n".join(lines) + "\n")
    (folder / "video_features_basic_pure.csv").write_text("\n".join(videos) + "\n")
    return counts


def yoochoose(folder: Path, users: int = 40, each: int = 5) -> dict[str, int]:
    """yoochoose-clicks.dat and yoochoose-buys.dat: no header, no users, no catalogue."""
    clicks, buys = [], []
    for number, (user, item, moment) in enumerate(_visits(users, each)):
        time = f"{moment:%Y-%m-%dT%H:%M:%S}.{number % 1000:03d}Z"
        clicks.append(f"{user},{time},{214500000 + item},{'S' if number % 3 else item % 12}")
        if number % 11 == 0:
            buys.append(f"{user},{time},{214500000 + item},{number * 100},{number % 2}")
    folder.mkdir(parents=True)
    (folder / "yoochoose-clicks.dat").write_text("\n".join(clicks) + "\n")
    (folder / "yoochoose-buys.dat").write_text("\n".join(buys) + "\n")
    return {"click": len(clicks), "conversion": len(buys)}


FORMATS: dict[str, Callable[..., dict[str, int]]] = {
    "retailrocket": retailrocket,
    "mind": mind,
    "kuairand": kuairand,
    "yoochoose": yoochoose,
}
"""By the name of the mapping that is shipped for it."""
