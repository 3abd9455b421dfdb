"""The run report: what a run left behind, as one HTML file and as JSON.

From the records that the stage keeps, finished or not: `facts` gathers, `page` shows.
"""
