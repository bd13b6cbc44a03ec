"""A page of a manual: what is prose in it, and all that is not."""

PROSE = (
    "The queue is called a workqueue and the thread that serves it is called a worker, as there "
    "may be more than one of them."
)
MORE = (
    "When there is no work left in the queue the worker becomes idle, and it begins again when a "
    "new item has been put there."
)
PAGE = f"""<html><head><title>Queues</title><style>p {{ color: red }}</style></head><body>
<nav><a href=x>Home of all the pages that there are in this manual.</a></nav>
<h1>Work queues<a class=headerlink>¶</a></h1><p>{PROSE}</p>
<pre>int wake_up(struct worker *w);</pre><h2>Tables</h2>
<table><tr><td>WQ_UNBOUND</td><td>0x02</td></tr></table>
<h2>Idle workers</h2><ul><li>{MORE}</li></ul>
<p>Copyright (c) 2010 by all of those who have had a part in it.</p>
<footer>This page is one of the pages of the manual.</footer>"""
