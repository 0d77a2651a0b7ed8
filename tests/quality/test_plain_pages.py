"""Pages of others, made plain: what informs stays, what loads, runs or leaves goes."""

from sgrec_core.quality.plain_pages import plain_page

THEIRS = """<!DOCTYPE html><html><head><title>theirs</title><link rel="stylesheet" href="https://cdn/x.css">
<script src="https://cdn/x.js"></script><style>a { background: url(https://cdn/logo.png) }</style></head>
<body onload="run()"><nav><a href="https://elsewhere">logo<img src="https://cdn/logo.png"></a></nav>
<script>if (1 < 2) { document.write("<p>drawn</p>") }</script>
<div class="modal fade"><div>a tour<div>inside</div><br></div></div>
<p class="lead" style="display:none" onclick="run()">Fails on &lt;script&gt; &amp; &#39;text&#39;
<a href="../index.html">home</a> <a href="javascript:run()">run</a> <a href="#section-1">down</a><img src="x.png"></p>
<table><tr><td id="cell">a &amp; b<br>c</td></tr></table><footer>buy</footer></body></html>"""


def test_what_informs_stays_and_what_loads_runs_or_leaves_goes() -> None:
    page = plain_page(THEIRS, title="events of <2026>", home="../index.html")
    assert "<title>sgrec: events of &lt;2026&gt;</title>" in page
    body = page.partition("<section>")[2].partition("</section>")[0]
    assert " ".join(body.split()) == (
        '<p class="lead">Fails on &lt;script&gt; &amp; &#39;text&#39; <a href="../index.html">home</a> <a>run</a>'
        ' <a href="#section-1">down</a></p> <table><tr><td id="cell">a &amp; b<br>c</td></tr></table>'
    )
    for word in ("http:", "https:", "<script", "<img", "url("):
        assert word not in page, word


def test_an_element_that_is_never_closed_takes_what_follows_and_no_more_runs() -> None:
    page = plain_page("<body><p>kept</p><div class='modal'><p>lost</p><script>run()", title="t", home="index.html")
    assert "<p>kept</p>" in page
    assert "run()" not in page
