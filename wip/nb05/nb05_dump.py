import nbformat,sys
nb=nbformat.read(sys.argv[1],as_version=4)
for i,c in enumerate(nb.cells):
    print(f"\n=== [{i}] {c.cell_type} {c.get('id')} {dict(c.metadata)}")
    print(c.source)
    if c.cell_type=='code':
        for o in c.outputs:
            t=o.get('text') or o.get('data',{}).get('text/plain') or ''
            print('   >>',t[:1500])
