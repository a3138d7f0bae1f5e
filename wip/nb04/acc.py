import pandas as pd,glob
for f in sorted(glob.glob("/tmp/grid/runs/*/table_answers.csv")):
    d=pd.read_csv(f,dtype=str); print(f.split("/")[4],{c:(round(sum(map(int,d[c][0]))/len(d[c][0]),3) if len(d[c][0])>20 else d[c][0]) for c in d})
