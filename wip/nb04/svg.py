tokens=["door:","43","⏎","comb:","44","⏎","cup:"]
X=[130+i*92 for i in range(7)]
W,H=760,500
o=[]
a=o.append
a(f'''<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {W} {H}" width="{W}" height="{H}" role="img" aria-labelledby="what">
<title id="what">A layer of a state space model, from top to bottom. The short convolution mixes each token with the three before it. The scan carries a state from token to token: it fades, takes in B times x, and is read with C. The gate scales what is read. The result is z.</title>
<style>
svg {{ font: 15px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }}
.say {{ font-family: system-ui, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 15px }}
.page {{ fill: #fbfaf7; stroke: #dcd8cf }}
text {{ fill: #24292f }}
.soft {{ fill: #66707b }}
.token {{ fill: #fff; stroke: #cfcac0 }}
.mixed {{ fill: #e3edfc; stroke: #2563c9; stroke-width: 1.5 }}
.state {{ fill: #fdeadb; stroke: #d2650c; stroke-width: 1.5 }}
path {{ fill: none }}
.conv {{ stroke: #2563c9; stroke-width: 2.2 }}
.faint {{ stroke: #2563c9; stroke-width: 1; opacity: .35 }}
.carry {{ stroke: #d2650c; stroke-width: 4 }}
.in, .out {{ stroke: #d2650c; stroke-width: 1.6 }}
.gate {{ stroke: #66707b; stroke-width: 1.4; stroke-dasharray: 4 4 }}
.blue {{ fill: #2563c9; stroke: none }}
.orange {{ fill: #b9560a; stroke: none }}
.grey {{ fill: #66707b; stroke: none }}
@media (prefers-color-scheme: dark) {{
  .page {{ fill: #1a1e24; stroke: #363d47 }}
  text {{ fill: #e6e8eb }}
  .soft, .grey {{ fill: #9aa4b0 }}
  .token {{ fill: #262c35; stroke: #4a525e }}
  .mixed {{ fill: #1d3050; stroke: #6ea8fe }}
  .state {{ fill: #4a2c14; stroke: #ff9a47 }}
  .conv, .faint {{ stroke: #6ea8fe }}
  .carry, .in, .out {{ stroke: #ff9a47 }}
  .gate {{ stroke: #9aa4b0 }}
  .blue {{ fill: #6ea8fe }}
  .orange {{ fill: #ff9a47 }}
}}
</style>
<defs>''')
for i,c,s in (("tipb","blue",8),("tipo","orange",9),("big","orange",15),("tipg","grey",8)):
    a(f'<marker id="{i}" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="{s}" markerHeight="{s}" markerUnits="userSpaceOnUse" orient="auto"><path class="{c}" d="M1 1 L9 5 L1 9 Z"/></marker>')
a('</defs>')
a(f'<rect class="page" x="1" y="1" width="{W-2}" height="{H-2}" rx="6"/>')
def label(y,n,cls="soft"): a(f'<text class="{cls}" x="24" y="{y}">{n}</text>')
# row 1: tokens
T,M,S,Z=70,168,286,424
a('<text class="blue say" x="24" y="34">1  Convolution: four taps mix a token with the three before it.</text>')
label(T+5,"stream")
for x,t in zip(X,tokens):
    a(f'<rect class="token" x="{x-33}" y="{T-15}" width="66" height="28" rx="4"/><text x="{x}" y="{T+5}" text-anchor="middle">{t}</text>')
for i in range(7):
    for d in range(3,-1,-1):
        j=i-d
        if j<0: continue
        cls="conv" if i in (4,) else "faint"
        mk=' marker-end="url(#tipb)"' if i==4 else ''
        a(f'<path class="{cls}"{mk} d="M{X[j]} {T+14} C{X[j]} {T+48} {X[i]} {T+48} {X[i]} {M-17}"/>')
label(M+5,"x, B, C")
for x in X: a(f'<rect class="mixed" x="{x-33}" y="{M-15}" width="66" height="28" rx="4"/><text x="{x}" y="{M+5}" text-anchor="middle">x B C</text>')
# row 2 scan
a(f'<text class="orange say" x="24" y="{M+50}">2  Scan: the state h fades, takes in B·x, and is read with C.</text>')
label(S+5,"state h")
for i,x in enumerate(X):
    a(f'<path class="in" marker-end="url(#tipo)" d="M{x} {M+62} L{x} {S-22}"/>')
    a(f'<rect class="state" x="{x-20}" y="{S-20}" width="40" height="40" rx="3"/>')
    for k in range(1,4):
        a(f'<path class="state" style="stroke-width:.6" d="M{x-20+10*k} {S-20} V{S+20} M{x-20} {S-20+10*k} H{x+20}"/>')
    if i: a(f'<path class="carry" marker-end="url(#big)" d="M{X[i-1]+22} {S} L{x-22} {S}"/>')
    a(f'<path class="out" marker-end="url(#tipo)" d="M{x} {S+21} L{x} {S+51}"/>')
a(f'<text class="say" x="{(X[0]+X[1])/2}" y="{S-12}" text-anchor="middle" font-size="13">fades</text>')
a(f'<text class="say" x="{X[0]+7}" y="{S-30}" font-size="13">B·x</text>')
a(f'<text class="say" x="{X[0]+7}" y="{S+40}" font-size="13">C</text>')
a(f'<text class="say soft" x="24" y="{S+72}">3  Gate: a token adds its own D·x to what it has read, and scales the sum: z.</text>')
label(Z-20,"z")
for x in X:
    a(f'<rect class="token" x="{x-33}" y="{Z-40}" width="66" height="28" rx="4"/><text x="{x}" y="{Z-20}" text-anchor="middle">z</text>')
a(f'<text class="say" x="24" y="{Z+24}">In this layer a token knows the text before it in two ways: the last three tokens</text>')
a(f'<text class="say" x="24" y="{Z+45}">through the convolution, and all of it through one state of fixed size.</text>')
a('</svg>')
open("/work/wt-nb04/notebooks/images/ssm_layer.svg","w").write("\n".join(o)+"\n")
